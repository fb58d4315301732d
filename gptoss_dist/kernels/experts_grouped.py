"""Packed experts in CUDA C++ for many routes an expert: a grouped product on Hopper's warpgroup instructions.

`cuda/experts_grouped.cu` says how: a warpgroup copies, two multiply, and codes are unpacked while products run, which
Triton's cannot do safely (NOTES.md). The layout of the weights is `experts_triton`'s, and so is the order of routes.

Shape legend: T tokens, P routes, E experts here, H hidden, I intermediate columns here.
"""

from __future__ import annotations

from typing import NamedTuple

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
ROWS, STEP = 256, 4
"""Weight rows of an item and groups of a step, as grouped_ring.cuh has them."""
_UNIT = 32
"""Items multiply a multiple of so many columns."""
_THREADS = 384
_GATHERED, _GATHERING = 8, 256
_SUM_BYTES = 8 * 32 * 36 * 4


class Ring(NamedTuple):
    """What a block holds of its operands at once."""

    columns: int
    """Most routes of an item: 64 or 128."""
    stages: int
    """Steps."""

    def shared_bytes(self) -> int:
        """Of a block: activations, codes and scales of every step, sums of eight warps, two barriers a step."""
        return self.stages * (STEP * (self.columns * 64 + ROWS * 16 + ROWS) + 2 * 8) + _SUM_BYTES

    def names_of(self, groups_in: int, groups_inner: int, wide: bool) -> tuple[str, str, str]:
        """The kernels in C++, in their order, for one width of the model and of the shard; `wide`: float32 rows."""
        ring, last = f"{self.stages}, {self.columns}", "true" if wide else "false"
        return (
            f"gather_routes<{groups_in}>",
            f"gate_up_grouped<{groups_in}, {ring}>",
            f"down_grouped<{groups_inner}, {ring}, {last}>",
        )


_FEW, _MANY = Ring(64, 5), Ring(128, 3)
_MOST_FEW = 16.0
"""Routes an expert in the mean, up to which few experts have more than 64 however unevenly they are chosen. What limits
those is how many bytes are under way; an expert of two tiles takes half as long again."""


def rings(routes_per_expert: float) -> tuple[Ring, Ring]:
    """Worth timing, the one in use first; `routes_per_expert`: of the model, in the mean."""
    return (_FEW, _MANY) if routes_per_expert <= _MOST_FEW else (_MANY, _FEW)


def fewest_tokens(top_k: int, experts: int) -> tuple[int, ...]:
    """As `experts_tiles.fewest_tokens`, for these kernels: the fewest of a ring of its own."""
    return (int(_MOST_FEW * experts / top_k) + 1,)


def _activations(groups: int, routes: int, like: torch.Tensor) -> torch.Tensor:
    """As experts_grouped.cu wants them: a plane of 64 columns for each two groups."""
    return like.new_empty((groups + 1) // 2, routes, 64)


def expert_rows(
    hidden_TH: torch.Tensor,
    index_P: torch.Tensor,
    weight_P: torch.Tensor,
    packed: PackedExperts,
    dtype: torch.dtype,
    ring: Ring | None = None,
) -> torch.Tensor:
    """See `experts_triton.expert_rows`; rows `[P, H]` in `dtype`, bfloat16 or float32. `hidden_TH` is bfloat16.

    `ring`: other than `rings` has it.
    """
    (tokens, hidden), (experts, groups) = hidden_TH.shape, packed.gate_up_bias.shape[:2]
    routes, device = index_P.numel(), hidden_TH.device
    ring = ring or rings(packed.routes_per_expert(routes))[0]
    names = ring.names_of(hidden // 32, groups, dtype == torch.float32)
    gather, gate_up, down = (cuda_program.kernels_of(FILES, (name,), device.index)[0] for name in names)
    found = group_routes(index_P, experts, ring.columns, _UNIT)
    where = (found.order_P, found.expert_S, found.first_S, found.count_S)
    slots, processors = found.expert_S.numel(), processor_count(device)
    gathered, inner = (_activations(count, routes, hidden_TH) for count in (hidden // 32, groups))
    rows_PH = hidden_TH.new_empty(routes, hidden, dtype=dtype)
    gather((slots, ring.columns // _GATHERED), _GATHERING, 0, hidden_TH, *where, gathered, routes, routes // tokens)
    gate_up(
        (processors, 1), _THREADS, ring.shared_bytes(),
        gathered, *where, packed.gate_up_blocks, packed.gate_up_scales, packed.gate_up_bias, inner,
        routes, slots, 64 * groups, float(packed.alpha), float(packed.limit),
    )  # fmt: skip
    down(
        (processors, 1), _THREADS, ring.shared_bytes(),
        inner, *where, packed.down_blocks, packed.down_scales, packed.down_bias, weight_P.float().contiguous(),
        rows_PH, routes, slots, hidden,
    )  # fmt: skip
    return rows_PH
