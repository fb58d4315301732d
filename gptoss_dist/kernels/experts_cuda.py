"""Packed experts in CUDA C++. Few tokens stream, where Triton reaches a fifth to a half of the memory's bandwidth.

Bytes of weights are all that counts up to some routes an expert: in `cuda/experts_stream.cu` a grid fills the chip once
and every warp streams its range of the active experts' weights from memory through registers into the tensor cores;
`down` begins to load before gate_up has ended. More tokens go to `experts_grouped` where the GPU is a Hopper. The rest,
other GPUs and other formats than bfloat16, goes to `experts_triton`, whose layout in memory all read. The reference is
`experts_reference`; NOTES.md holds what was measured.

Shape legend: T tokens, K experts per token, P = T·K routes, H hidden, I intermediate columns here.
"""

from __future__ import annotations

from typing import Any

import torch

from gptoss_dist.kernels import cuda_program, experts_grouped, experts_triton, norm_triton
from gptoss_dist.kernels.cuda_launch import Kernel
from gptoss_dist.kernels.device_facts import capability, processor_count
from gptoss_dist.kernels.experts_routes import group_routes
from gptoss_dist.kernels.experts_shapes import TILE, Shapes, candidates, needs_list
from gptoss_dist.kernels.experts_tiles import ROUNDED_ABOVE
from gptoss_dist.kernels.packed import PackedExperts

FILES = ("operations.cuh", "mxfp4.cuh", "expert_routes.cuh", "experts_finish.cuh", "experts_stream.cu")
"""One program, in this order."""
_MIN_CAPABILITY = (9, 0)


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


def experts_forward(
    hidden_TH: torch.Tensor,
    index_TK: torch.Tensor,
    weight_TK: torch.Tensor,
    packed: PackedExperts,
    shapes: Shapes | None = None,
) -> torch.Tensor:
    """See `experts_triton.experts_forward`."""
    rows_PH = expert_rows(hidden_TH, index_TK, weight_TK, packed, shapes)
    return norm_triton.sum_routes(rows_PH, index_TK.reshape(-1).contiguous(), hidden_TH, packed.expert_count)


def expert_rows(
    hidden_TH: torch.Tensor,
    index_TK: torch.Tensor,
    weight_TK: torch.Tensor,
    packed: PackedExperts,
    shapes: Shapes | None = None,
) -> torch.Tensor:
    """See `experts_triton.expert_rows`. `shapes`: stream by these, however many tokens there are."""
    tokens, bfloat16 = index_TK.shape[0], hidden_TH.dtype == torch.bfloat16
    if not (tokens and bfloat16 and packed.expert_count and packed.interleaved):
        return experts_triton.expert_rows(hidden_TH, index_TK, weight_TK, packed)
    if shapes is None:
        shapes = next(iter(candidates(tokens, packed.routes_per_expert(index_TK.numel()))), None)
    if shapes is None and capability(hidden_TH.device) != experts_grouped.CAPABILITY:
        return experts_triton.expert_rows(hidden_TH, index_TK, weight_TK, packed)
    with torch.cuda.device_of(hidden_TH):  # type: ignore[no-untyped-call]
        index_P = index_TK.reshape(-1).to(torch.int32).contiguous()
        if shapes is not None:
            return _stream(hidden_TH.contiguous(), index_P, weight_TK, packed, shapes)
        dtype = torch.float32 if tokens <= ROUNDED_ABOVE else torch.bfloat16
        return experts_grouped.expert_rows(hidden_TH.contiguous(), index_P, weight_TK.reshape(-1), packed, dtype)


def _stream(
    hidden_TH: torch.Tensor, index_P: torch.Tensor, weight_TK: torch.Tensor, packed: PackedExperts, shapes: Shapes
) -> torch.Tensor:
    """`expert_rows` by both CUDA kernels."""
    (tokens, hidden), (experts, groups) = hidden_TH.shape, packed.gate_up_bias.shape[:2]
    routes, listed = index_P.numel(), needs_list(tokens, index_P.numel() // tokens)
    gate_up, down = kernels_of(hidden // 32, groups, listed, shapes, hidden_TH.device.index)
    where: tuple[torch.Tensor, ...] = (index_P,) * 5
    slots = 0
    if listed:
        found = group_routes(index_P, experts, shapes.columns)
        where, slots = (index_P, found.order_P, found.expert_S, found.first_S, found.count_S), found.expert_S.numel()
    processors = processor_count(hidden_TH.device)
    columns = shapes.columns if tokens > TILE else tokens  # of one tile only what there is
    inner_PI = hidden_TH.new_empty(routes, 32 * groups)
    rows_PH = hidden_TH.new_empty(routes, hidden, dtype=torch.float32)
    gate_up(
        (shapes.gate_up.blocks * processors, 1), 32 * shapes.gate_up.warps,
        shapes.gate_up.shared_bytes(hidden // 32, columns),
        hidden_TH, *where, packed.gate_up_blocks, packed.gate_up_scales, packed.gate_up_bias, inner_PI,
        routes, experts, slots, routes // tokens, 64 * groups, float(packed.alpha), float(packed.limit),
    )  # fmt: skip
    down(
        (shapes.down.blocks * processors, 1), 32 * shapes.down.warps, shapes.down.shared_bytes(groups, columns),
        inner_PI, *where, packed.down_blocks, packed.down_scales, packed.down_bias, weight_TK.float().contiguous(),
        rows_PH, routes, experts, slots, hidden, early=True,
    )  # fmt: skip
    return rows_PH


def kernels_of(
    groups_in: int, groups_inner: int, listed: bool, shapes: Shapes, device_index: int
) -> tuple[Kernel, ...]:
    """gate_up and down for one width of the model and of the shard."""
    names = (
        shapes.gate_up.instance("gate_up", groups_in, listed),
        shapes.down.instance("down", groups_inner, listed),
    )
    return cuda_program.kernels_of(FILES, names, device_index)
