"""Packed experts in CUDA C++. Few tokens stream, where Triton reaches a fifth to a half of the memory's bandwidth.

Bytes of weights are all that counts up to some routes an expert: in `cuda/experts_stream.cu` a grid fills the chip once
and every warp streams its range of the active experts' weights from memory through registers into the tensor cores:
first of gate_up, then of `down`, for each expert as soon as its inner activations are there. More tokens go to
`experts_grouped` where the GPU is a Hopper. The rest, other GPUs and other formats than bfloat16, goes to
`experts_triton`, whose layout in memory all read. The reference is `experts_reference`; NOTES.md holds what was
measured.

Shape legend: T tokens, K experts per token, P = T·K routes, H hidden, I intermediate columns here.
"""

from __future__ import annotations

from typing import Any

import torch

from gptoss_dist.errors import KernelError
from gptoss_dist.kernels import cuda_program, experts_grouped, experts_triton, norm_triton
from gptoss_dist.kernels.cuda_launch import Kernel
from gptoss_dist.kernels.device_facts import capability, processor_count
from gptoss_dist.kernels.experts_routes import group_routes
from gptoss_dist.kernels.experts_shapes import TILE, Shape, candidates, needs_list
from gptoss_dist.kernels.experts_tiles import ROUNDED_ABOVE
from gptoss_dist.kernels.packed import PackedExperts

FILES = ("operations.cuh", "mxfp4.cuh", "expert_routes.cuh", "experts_finish.cuh", "experts_stream.cu")
"""One program, in this order."""
_MIN_CAPABILITY = (9, 0)
_MOST_TILES = 4096
"""Of routes in a launch that streams: several times what `candidates` lets through."""


def unavailable(device: torch.device) -> str | None:
    """Why the kernels cannot run on `device`, or None."""
    if problem := experts_triton.unavailable(device):
        return problem
    if capability(device) < _MIN_CAPABILITY:
        return (
            f"the built-in CUDA kernels need compute capability 9.0, and this is {torch.cuda.get_device_name(device)}"
        )
    return cuda_program.missing()


def install(module: Any) -> None:
    """Lay the weights of a `PackedGptOssExperts` out for the kernels, in place, and make them its kernel."""
    experts_triton.install(module)
    module.kernel, module.rows_kernel = experts_forward, expert_rows
    module.counters = counters_on(module.down_proj_blocks.device)


def counters_on(device: torch.device | str) -> torch.Tensor:
    """What blocks wait for each other with: zeros between two launches that count on them.

    One launch at a time may, so every layer has its own, and every engine over it (`take_weights`): two of them in one
    process run at once. Made while weights are laid out; zeros made while a CUDA graph is captured would be none
    before it is played.
    """
    return torch.zeros(1 + _MOST_TILES, dtype=torch.int32, device=device)


def experts_forward(
    hidden_TH: torch.Tensor,
    index_TK: torch.Tensor,
    weight_TK: torch.Tensor,
    packed: PackedExperts,
    shape: Shape | None = None,
) -> torch.Tensor:
    """See `experts_triton.experts_forward`."""
    rows_PH = expert_rows(hidden_TH, index_TK, weight_TK, packed, shape)
    return norm_triton.sum_routes(rows_PH, index_TK.reshape(-1).contiguous(), hidden_TH, packed.expert_count)


def expert_rows(
    hidden_TH: torch.Tensor,
    index_TK: torch.Tensor,
    weight_TK: torch.Tensor,
    packed: PackedExperts,
    shape: Shape | None = None,
) -> torch.Tensor:
    """See `experts_triton.expert_rows`. `shape`: stream by these, however many tokens there are."""
    tokens, bfloat16 = index_TK.shape[0], hidden_TH.dtype == torch.bfloat16
    if not (tokens and bfloat16 and packed.expert_count and packed.interleaved):
        return experts_triton.expert_rows(hidden_TH, index_TK, weight_TK, packed)
    if shape is None:
        shape = next(iter(candidates(tokens, packed.routes_per_expert(index_TK.numel()))), None)
    if shape is None and capability(hidden_TH.device) != experts_grouped.CAPABILITY:
        return experts_triton.expert_rows(hidden_TH, index_TK, weight_TK, packed)
    with torch.cuda.device_of(hidden_TH):  # type: ignore[no-untyped-call]
        index_P = index_TK.reshape(-1).to(torch.int32).contiguous()
        if shape is not None:
            return _stream(hidden_TH.contiguous(), index_P, weight_TK, packed, shape)
        dtype = torch.float32 if tokens <= ROUNDED_ABOVE else torch.bfloat16
        return experts_grouped.expert_rows(hidden_TH.contiguous(), index_P, weight_TK.reshape(-1), packed, dtype)


def _stream(
    hidden_TH: torch.Tensor, index_P: torch.Tensor, weight_TK: torch.Tensor, packed: PackedExperts, shape: Shape
) -> torch.Tensor:
    """`expert_rows` by the kernel that streams."""
    if packed.counters is None:
        raise KernelError(
            "The CUDA expert kernels count in memory that belongs to the weights, and these have none: call "
            "experts_cuda.install on the module first, or use kernels.experts=triton."
        )
    (tokens, hidden), (experts, groups) = hidden_TH.shape, packed.gate_up_bias.shape[:2]
    routes, device_index = index_P.numel(), hidden_TH.device.index
    listed = needs_list(tokens, routes // tokens)
    where: tuple[torch.Tensor, ...] = (index_P,) * 5
    slots = 0
    if listed:
        found = group_routes(index_P, experts, shape.columns)
        where, slots = (index_P, found.order_P, found.expert_S, found.first_S, found.count_S), found.expert_S.numel()
        assert slots < _MOST_TILES
    columns = shape.columns if tokens > TILE else tokens  # of one tile only what there is
    inner_PI = hidden_TH.new_empty(routes, 32 * groups)
    rows_PH = hidden_TH.new_empty(routes, hidden, dtype=torch.float32)
    kernel_of(hidden // 32, groups, listed, shape, device_index)(
        (shape.blocks * processor_count(hidden_TH.device), 1), 32 * shape.warps,
        shape.shared_bytes(max(hidden // 32, groups), columns),
        hidden_TH, *where, packed.gate_up_blocks, packed.gate_up_scales, packed.gate_up_bias, inner_PI,
        packed.down_blocks, packed.down_scales, packed.down_bias, weight_TK.float().contiguous(), rows_PH,
        packed.counters, routes, experts, slots, routes // tokens, float(packed.alpha), float(packed.limit),
        together=True,
    )  # fmt: skip
    return rows_PH


def kernel_of(hidden_groups: int, groups: int, listed: bool, shape: Shape, device_index: int) -> Kernel:
    """The kernel for one width of the model and of the shard."""
    return cuda_program.kernels_of(FILES, (shape.instance(hidden_groups, groups, listed),), device_index)[0]
