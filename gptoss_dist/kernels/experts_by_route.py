"""Packed experts in Triton, one program a route: simple, measured, and what `kernels.experts=auto` takes on a GPU.

Few routes (decode): one program a route and tile of rows reads that expert's bytes once and multiplies as it unpacks.
Many routes (prefill): expert by expert, weights unpacked by a kernel into the activations' dtype and multiplied by
torch, which reads the counts back from the device: no part of a CUDA graph. `experts_triton` is meant to take its
place once it has been measured. The reference is `experts_reference`. NOTES.md beside this file holds the measurements.

E2M1 codes become floats by moving bits: the three low bits of a code, put at the foot of float16's exponent, are the
code's magnitude times 2^-14 (subnormals included), and bit 3 is the sign. A scale byte is float32's exponent as it is;
0 gives 0 instead of 2^-127, which only ever stands over zeros.

Shape legend: T tokens, K experts per token, P = T·K routes, E experts here, H hidden, I intermediate columns here.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from gptoss_dist.errors import KernelError
from gptoss_dist.kernels.experts_reference import swiglu
from gptoss_dist.kernels.packed import PackedExperts

_FEW_ROUTES = 512
"""Up to here every route reads its own expert; above it an expert is read once for all its routes."""
_GROUPS_A_PROGRAM = 128
_MIN_CAPABILITY = (8, 0)


def unavailable(device: torch.device) -> str | None:
    """Why the kernels cannot run on `device`, or None."""
    if device.type != "cuda":
        return "the built-in Triton kernels need a GPU"
    if torch.cuda.get_device_capability(device) < _MIN_CAPABILITY:
        return (
            f"the built-in Triton kernels need compute capability 8.0, and this is {torch.cuda.get_device_name(device)}"
        )
    return None


def install(module: Any) -> None:
    """Make them the kernel of a `PackedGptOssExperts`."""
    module.kernel = experts_forward


def experts_forward(
    hidden_TH: torch.Tensor, index_TK: torch.Tensor, weight_TK: torch.Tensor, packed: PackedExperts
) -> torch.Tensor:
    """See `experts_reference.experts_forward`; sums and the inner activations are float32."""
    if packed.interleaved:
        raise KernelError("These experts are laid out for kernels.experts=triton already; load the model anew.")
    if index_TK.numel() <= _FEW_ROUTES:
        return _by_route(hidden_TH, index_TK, weight_TK, packed)
    return _by_expert(hidden_TH, index_TK, weight_TK, packed)


def unpack(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Blocks [..., G, 16] and scales [..., G], both contiguous, to [..., 32·G] of `dtype`."""
    values = torch.empty((*scales.shape, 32), dtype=dtype, device=blocks.device)
    groups = scales.numel()
    _unpack_kernel[(triton.cdiv(groups, _GROUPS_A_PROGRAM),)](
        blocks, scales, values, groups, BLOCK_GROUPS=_GROUPS_A_PROGRAM
    )
    return values.flatten(-2)


def _by_route(
    hidden_TH: torch.Tensor, index_TK: torch.Tensor, weight_TK: torch.Tensor, packed: PackedExperts
) -> torch.Tensor:
    tokens, top_k = index_TK.shape
    experts, groups = packed.down_scales.shape[0], packed.down_scales.shape[2]
    hidden_size, routes = hidden_TH.shape[1], tokens * top_k
    inner_PI = torch.empty(routes, 32 * groups, dtype=torch.float32, device=hidden_TH.device)
    out_PH = torch.empty(routes, hidden_size, dtype=torch.float32, device=hidden_TH.device)
    rows, columns = 16, 512
    index_P, weight_P = index_TK.reshape(-1).contiguous(), weight_TK.reshape(-1).contiguous()
    _gate_up_kernel[(routes, triton.cdiv(64 * groups, rows))](
        hidden_TH.contiguous(),
        index_P,
        packed.gate_up_blocks,
        packed.gate_up_scales,
        packed.gate_up_bias,
        inner_PI,
        experts,
        packed.alpha,
        packed.limit,
        TOP_K=top_k,
        ROWS=64 * groups,
        GROUPS=hidden_size // 32,
        BLOCK_ROWS=rows,
        BLOCK_BYTES=columns,
    )
    _down_kernel[(routes, triton.cdiv(hidden_size, rows))](
        inner_PI,
        index_P,
        weight_P,
        packed.down_blocks,
        packed.down_scales,
        packed.down_bias,
        out_PH,
        experts,
        ROWS=hidden_size,
        GROUPS=groups,
        BLOCK_ROWS=rows,
        BLOCK_BYTES=columns,
    )
    return out_PH.view(tokens, top_k, hidden_size).sum(dim=1).to(hidden_TH.dtype)


def _by_expert(
    hidden_TH: torch.Tensor, index_TK: torch.Tensor, weight_TK: torch.Tensor, packed: PackedExperts
) -> torch.Tensor:
    out_TH = torch.zeros(hidden_TH.shape, dtype=torch.float32, device=hidden_TH.device)
    dtype, experts = hidden_TH.dtype, packed.expert_count
    key_P = torch.where((index_TK >= 0) & (index_TK < experts), index_TK, experts).reshape(-1)
    order_P = key_P.argsort(stable=True)
    counts = torch.bincount(key_P, minlength=experts + 1).tolist()
    token_P, weight_P = order_P // index_TK.shape[1], weight_TK.reshape(-1)[order_P]
    start = 0
    for expert, count in enumerate(counts[:experts]):
        if count:
            token_N = token_P[start : start + count]
            gate_up_IH = unpack(packed.gate_up_blocks[expert], packed.gate_up_scales[expert], dtype).flatten(0, 1)
            gate_up_NI = hidden_TH[token_N] @ gate_up_IH.T + packed.gate_up_bias[expert].flatten()
            down_HI = unpack(packed.down_blocks[expert], packed.down_scales[expert], dtype)
            out_NH = swiglu(gate_up_NI, packed.alpha, packed.limit) @ down_HI.T + packed.down_bias[expert]
            out_TH.index_add_(0, token_N, out_NH.float() * weight_P[start : start + count, None])
        start += count
    return out_TH.to(dtype)


@triton.jit
def _magnitudes(codes):
    """E2M1 codes (0 to 15) as float32, times 2^-14."""
    bits = ((codes & 7) << 9) | ((codes & 8) << 12)
    return bits.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _scale_values(scales):
    """Scale bytes as float32: 2^(byte - 127)."""
    return (scales.to(tl.int32) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _packed_dot(vector, blocks, scales, row, in_rows, GROUPS: tl.constexpr, ROWS: tl.constexpr, BYTES: tl.constexpr):
    """For each of ROWS packed rows of GROUPS groups: its product with `vector` (32·GROUPS values), float32."""
    total = tl.zeros([ROWS], dtype=tl.float32)
    for first in range(0, GROUPS * 16, BYTES):
        byte = first + tl.arange(0, BYTES)
        in_row = byte < GROUPS * 16
        mask = in_rows[:, None] & in_row[None, :]
        packed = tl.load(blocks + row[:, None] * (GROUPS * 16) + byte[None, :], mask=mask, other=0).to(tl.int32)
        scale = tl.load(scales + row[:, None] * GROUPS + (byte // 16)[None, :], mask=mask, other=0)
        even = tl.load(vector + 2 * byte, mask=in_row, other=0.0).to(tl.float32)
        odd = tl.load(vector + 2 * byte + 1, mask=in_row, other=0.0).to(tl.float32)
        product = _magnitudes(packed & 15) * even[None, :] + _magnitudes(packed >> 4) * odd[None, :]
        total += tl.sum(product * _scale_values(scale), axis=1)
    return total * 16384.0


@triton.jit
def _gate_up_kernel(
    hidden, index, blocks, scales, bias, inner, experts, alpha, limit,
    TOP_K: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_BYTES: tl.constexpr,
):  # fmt: skip
    """inner[route] = clamped SwiGLU of its expert's gate and up rows; routes of other ranks are left as they are."""
    route = tl.program_id(0)
    expert = tl.load(index + route).to(tl.int64)
    if (expert >= 0) & (expert < experts):
        rows = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        row = expert * ROWS + rows
        vector = hidden + (route // TOP_K).to(tl.int64) * (GROUPS * 32)
        gate_up = _packed_dot(vector, blocks, scales, row, rows < ROWS, GROUPS, BLOCK_ROWS, BLOCK_BYTES)
        gate_up += tl.load(bias + row, mask=rows < ROWS, other=0.0).to(tl.float32)
        gate, up = tl.split(tl.reshape(gate_up, (BLOCK_ROWS // 2, 2)))
        gate = tl.minimum(gate, limit)
        up = tl.minimum(tl.maximum(up, -limit), limit)
        value = (up + 1.0) * gate * tl.sigmoid(gate * alpha)
        column = tl.program_id(1) * (BLOCK_ROWS // 2) + tl.arange(0, BLOCK_ROWS // 2)
        tl.store(inner + route.to(tl.int64) * (ROWS // 2) + column, value, mask=column < ROWS // 2)


@triton.jit
def _down_kernel(
    inner, index, weight, blocks, scales, bias, out, experts,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_BYTES: tl.constexpr,
):  # fmt: skip
    """out[route] = weight · (down rows · inner[route] + bias); zero for routes of other ranks."""
    route = tl.program_id(0)
    expert = tl.load(index + route).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    value = tl.zeros([BLOCK_ROWS], dtype=tl.float32)
    if (expert >= 0) & (expert < experts):
        row = expert * ROWS + rows
        vector = inner + route.to(tl.int64) * (GROUPS * 32)
        value = _packed_dot(vector, blocks, scales, row, rows < ROWS, GROUPS, BLOCK_ROWS, BLOCK_BYTES)
        value += tl.load(bias + row, mask=rows < ROWS, other=0.0).to(tl.float32)
        value *= tl.load(weight + route).to(tl.float32)
    tl.store(out + route.to(tl.int64) * ROWS + rows, value, mask=rows < ROWS)


@triton.jit
def _unpack_kernel(blocks, scales, values, groups, BLOCK_GROUPS: tl.constexpr):
    """values[group] = the 32 values of a block times its scale."""
    group = tl.program_id(0).to(tl.int64) * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)
    inside = (group < groups)[:, None]
    place = group[:, None] * 16 + tl.arange(0, 16)[None, :]
    packed = tl.load(blocks + place, mask=inside, other=0).to(tl.int32)
    factor = _scale_values(tl.load(scales + group, mask=group < groups, other=0))[:, None] * 16384.0
    pairs = tl.join(_magnitudes(packed & 15) * factor, _magnitudes(packed >> 4) * factor)
    target = group[:, None] * 32 + tl.arange(0, 32)[None, :]
    tl.store(values + target, tl.reshape(pairs, (BLOCK_GROUPS, 32)).to(values.dtype.element_ty), mask=inside)
