"""Packed experts in CUDA C++ for many routes an expert: a grouped product on Hopper's warpgroup instructions.

`cuda/experts_grouped.cu` says how: a warpgroup copies, two multiply, and codes are unpacked while products run, which
Triton's cannot do safely (NOTES.md). The layout of the weights is `experts_triton`'s, and so is the order of routes.

Shape legend: T tokens, P routes, E experts here, H hidden, I intermediate columns here.
"""

from __future__ import annotations

import torch

from gptoss_dist.kernels import cuda_program
from gptoss_dist.kernels.device_facts import processor_count
from gptoss_dist.kernels.experts_routes import group_routes
from gptoss_dist.kernels.packed import PackedExperts

FILES = (
    *("operations.cuh", "mxfp4.cuh", "warpgroup.cuh"),
    *("grouped_ring.cuh", "grouped_products.cuh", "grouped_finish.cuh", "experts_grouped.cu"),
)
"""One program, in this order."""
CAPABILITY = (9, 0)
"""No other GPU has these instructions."""
ROWS, COLUMNS, STEP, STAGES = 256, 128, 4, 3
"""Weight rows and routes of an item, groups of a step and steps of the ring, as grouped_ring.cuh has them."""
_UNIT = 32
"""Items multiply a multiple of so many columns."""
_THREADS = 384
_GATHERED, _GATHERING = 8, 256
_SUM_BYTES = 8 * 32 * 36 * 4


def shared_bytes(stages: int = STAGES) -> int:
    """Of a block: activations, codes and scales of every step, sums of eight warps, two barriers a step."""
    return stages * (STEP * (COLUMNS * 64 + ROWS * 16 + ROWS) + 2 * 8) + _SUM_BYTES


def names_of(groups_in: int, groups_inner: int, wide: bool, stages: int = STAGES) -> tuple[str, str, str]:
    """The kernels in C++, in their order, for one width of the model and of the shard; `wide`: float32 rows."""
    last = "true" if wide else "false"
    return (
        f"gather_routes<{groups_in}>",
        f"gate_up_grouped<{groups_in}, {stages}>",
        f"down_grouped<{groups_inner}, {stages}, {last}>",
    )


def _activations(groups: int, routes: int, like: torch.Tensor) -> torch.Tensor:
    """As experts_grouped.cu wants them: a plane of 64 columns for each two groups."""
    return like.new_empty((groups + 1) // 2, routes, 64)


def expert_rows(
    hidden_TH: torch.Tensor,
    index_P: torch.Tensor,
    weight_P: torch.Tensor,
    packed: PackedExperts,
    dtype: torch.dtype,
) -> torch.Tensor:
    """See `experts_triton.expert_rows`; rows `[P, H]` in `dtype`, bfloat16 or float32. `hidden_TH` is bfloat16."""
    (tokens, hidden), (experts, groups) = hidden_TH.shape, packed.gate_up_bias.shape[:2]
    routes, device = index_P.numel(), hidden_TH.device
    names = names_of(hidden // 32, groups, dtype == torch.float32)
    gather, gate_up, down = cuda_program.kernels_of(FILES, names, device.index)
    found = group_routes(index_P, experts, COLUMNS, _UNIT)
    where = (found.order_P, found.expert_S, found.first_S, found.count_S)
    slots, processors = found.expert_S.numel(), processor_count(device)
    gathered, inner = (_activations(count, routes, hidden_TH) for count in (hidden // 32, groups))
    rows_PH = hidden_TH.new_empty(routes, hidden, dtype=dtype)
    gather((slots, COLUMNS // _GATHERED), _GATHERING, 0, hidden_TH, *where, gathered, routes, routes // tokens)
    gate_up(
        (processors, 1), _THREADS, shared_bytes(),
        gathered, *where, packed.gate_up_blocks, packed.gate_up_scales, packed.gate_up_bias, inner,
        routes, slots, 64 * groups, float(packed.alpha), float(packed.limit),
    )  # fmt: skip
    down(
        (processors, 1), _THREADS, shared_bytes(),
        inner, *where, packed.down_blocks, packed.down_scales, packed.down_bias, weight_P.float().contiguous(),
        rows_PH, routes, slots, hidden,
    )  # fmt: skip
    return rows_PH
