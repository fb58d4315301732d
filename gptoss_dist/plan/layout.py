"""Every parameter of the model as one rank holds it: name, whole shape, shape on the rank.

The one list that loading is checked against (`verify`) and that memory is predicted from (`gptoss_dist.memory`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from gptoss_dist.plan.rules import style_of
from gptoss_dist.plan.shard import local_shape
from gptoss_dist.shapes import GROUP, Shape, TensorSpec


class Piece(NamedTuple):
    """One parameter on one rank; `style` is None where the plan leaves it whole."""

    name: str
    whole: tuple[int, ...]
    local: tuple[int, ...]
    dtype: str
    style: str | None

    @property
    def elements(self) -> int:
        """Number of values the rank holds (a packed byte counts as one)."""
        return math.prod(self.local)


def as_loaded(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of a checkpoint tensor as the model holds it: rows of packed gate_up_proj by groups of 64."""
    last = spec.name.rpartition(".")[2]
    packed = ("gate_up_proj_blocks", "gate_up_proj_scales")
    if last not in packed:
        return spec.shape
    experts, rows, *rest = spec.shape
    return (experts, rows // (2 * GROUP), 2 * GROUP, *rest)


def pieces(shape: Shape, packed: bool, rules: Mapping[str, str], ranks: int, rank: int) -> Iterator[Piece]:
    """What `rank` of the `ranks` of a replica holds, parameter by parameter."""
    for spec in shape.tensors(dense=not packed):
        whole = as_loaded(spec)
        if packed and spec.name.endswith("gate_up_proj_bias"):
            whole = (whole[0], whole[1] // (2 * GROUP), 2 * GROUP)
        style = style_of(spec.name, rules)
        yield Piece(spec.name, whole, local_shape(spec.name, whole, style, ranks, rank), spec.dtype, style)
