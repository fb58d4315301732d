"""Random packed experts, laid out for the kernels, and their routes listed in plain Python."""

from __future__ import annotations

from dataclasses import replace

import torch

from gptoss_dist.kernels.mxfp4_layout import interleave_
from gptoss_dist.kernels.packed import PackedExperts


def random_experts(experts: int, hidden_groups: int, groups: int) -> PackedExperts:
    """In the checkpoint's order; any code, scales around 2^-6."""

    def some_bytes(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, dtype=torch.uint8)

    hidden = 32 * hidden_groups
    return PackedExperts(
        gate_up_blocks=some_bytes(0, 256, experts, groups, 64, hidden_groups, 16),
        gate_up_scales=some_bytes(118, 125, experts, groups, 64, hidden_groups),
        gate_up_bias=torch.randn(experts, groups, 64).bfloat16(),
        down_blocks=some_bytes(0, 256, experts, hidden, groups, 16),
        down_scales=some_bytes(118, 125, experts, hidden, groups),
        down_bias=torch.randn(experts, hidden).bfloat16(),
        alpha=1.702,
        limit=7.0,
    )


def interleaved(plain: PackedExperts) -> PackedExperts:
    """The same in the kernels' order."""
    names = ("gate_up_blocks", "gate_up_scales", "down_blocks", "down_scales")
    copies = {name: getattr(plain, name).clone() for name in names}
    interleave_(copies["gate_up_blocks"], copies["gate_up_scales"])
    interleave_(copies["down_blocks"], copies["down_scales"])
    return replace(plain, **copies, interleaved=True)


def listed_tiles(index_P: torch.Tensor, experts: int, columns: int) -> list[torch.Tensor]:
    """What `experts_routes.group_routes` makes, with two tiles that are not needed."""
    order, tiles = [], []
    for expert in range(experts):
        routes = [route for route, key in enumerate(index_P.tolist()) if key == expert]
        for first in range(0, len(routes), columns):
            tiles.append((expert, len(order) + first, len(routes[first : first + columns])))
        order += routes
    tiles += [(-1, 1 << 30, 1 << 30)] * 2
    return [torch.tensor(column, dtype=torch.int32) for column in (order or [0], *zip(*tiles, strict=True))]
