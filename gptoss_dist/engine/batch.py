"""One step of the scheduler as tensors: which tokens go through the model, and where their keys and values are kept.

Shape legend: T tokens of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gptoss_dist.engine.scheduler import Chunk
from gptoss_dist.kernels.attention_reference import Span


@dataclass(frozen=True)
class Batch:
    """The chunks of one step, one after the other."""

    ids_T: torch.Tensor
    positions_T: torch.Tensor
    full_slots_T: torch.Tensor
    """Where each token's key and value go in a layer with full attention: page × page size + place in the page."""
    sliding_slots_T: torch.Tensor
    """The same in a sliding layer."""
    full: tuple[Span, ...]
    sliding: tuple[Span, ...]
    sampled: torch.Tensor
    """Rows of T after which a token is chosen, in the order of the chunks that choose one."""


def build_batch(chunks: Sequence[Chunk], page_size: int, device: torch.device) -> Batch:
    """Lay `chunks` out on `device`."""
    ids: list[int] = []
    positions: list[int] = []
    slots: dict[str, list[int]] = {"full": [], "sliding": []}
    spans: dict[str, list[Span]] = {"full": [], "sliding": []}
    sampled: list[int] = []
    for chunk in chunks:
        sequence, first = chunk.sequence, len(ids)
        places = range(chunk.start, chunk.start + chunk.count)
        ids += sequence.tokens[chunk.start : chunk.start + chunk.count]
        positions += places
        for kind, table in (("full", sequence.full_table), ("sliding", sequence.sliding_table)):
            slots[kind] += [table[place // page_size] * page_size + place % page_size for place in places]
            spans[kind].append(Span(first, chunk.count, chunk.start, tuple(table)))
        if chunk.samples:
            sampled.append(len(ids) - 1)

    def tensor(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return Batch(
        ids_T=tensor(ids),
        positions_T=tensor(positions),
        full_slots_T=tensor(slots["full"]),
        sliding_slots_T=tensor(slots["sliding"]),
        full=tuple(spans["full"]),
        sliding=tuple(spans["sliding"]),
        sampled=tensor(sampled),
    )
