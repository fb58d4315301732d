"""A planned step as lists of numbers, which go to the device together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import torch

from gptoss_dist.engine.device_tables import Updates
from gptoss_dist.engine.staging import Part
from gptoss_dist.engine.step_plan import Chunk

N = TypeVar("N")


class Numbers(NamedTuple, Generic[N]):
    """What goes to the device for a batch: parts to send, or the tensors that they became."""

    ids: N
    full_slots: N
    sliding_slots: N
    sampled: N
    targets: N
    seeds: N
    draws: N
    slots: N
    places: N
    newcomers: N
    positions: N
    first: N
    counts: N
    start: N
    pages: N
    temperatures: N


def numbers_of(chunks: Sequence[Chunk], rows: Rows, updates: Updates) -> Numbers[Part]:
    """What to send: `rows` of the chunks, and what is new in their page tables."""
    int64, int32 = torch.int64, torch.int32
    return Numbers(
        ids=(int64, rows.ids),
        full_slots=(int64, rows.full_slots),
        sliding_slots=(int64, rows.sliding_slots),
        sampled=(int64, rows.sampled),
        targets=(int64, rows.targets),
        seeds=(int64, rows.seeds),
        draws=(int64, rows.draws),
        slots=(int64, [chunk.sequence.slot for chunk in chunks]),
        places=(int64, updates.places),
        newcomers=(int64, updates.newcomers),
        positions=(int32, rows.positions),
        first=(int32, rows.first),
        counts=(int32, rows.count),
        start=(int32, rows.start),
        pages=(int32, updates.pages),
        temperatures=(torch.float32, rows.temperatures),
    )


class Rows:
    """What the rows of a step are, and which of them choose a token."""

    def __init__(self) -> None:
        """No chunk yet."""
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.full_slots: list[int] = []
        self.sliding_slots: list[int] = []
        self.first: list[int] = []
        self.count: list[int] = []
        self.start: list[int] = []
        self.sampled: list[int] = []
        self.targets: list[int] = []
        self.seeds: list[int] = []
        self.draws: list[int] = []
        self.temperatures: list[float] = []
        self._decoding = 0

    def add(self, chunk: Chunk, page_size: int) -> None:
        """One more chunk; those whose token is fed back come before all others."""
        sequence, start = chunk.sequence, chunk.start
        if sequence.fed:
            assert not self.first, "decoding sequences come first"
            self._decoding += 1
            self.ids.append(0)  # replaced on the device
            self.positions.append(start)
            page, place = divmod(start, page_size)
            self.full_slots.append(sequence.full_table[page] * page_size + place)
            self.sliding_slots.append(sequence.sliding_table[page] * page_size + place)
        else:
            self.first.append(len(self.ids) - self._decoding)
            self.count.append(chunk.count)
            self.start.append(start)
            self.ids += sequence.tokens[start : chunk.end]
            self.positions += range(start, chunk.end)
            self.full_slots += _slots(sequence.full_table, start, chunk.end, page_size)
            self.sliding_slots += _slots(sequence.sliding_table, start, chunk.end, page_size)
        if chunk.samples:
            self.sampled.append(len(self.ids) - 1)
            self.targets.append(sequence.slot)
            self.seeds.append(sequence.request.sampling.seed)
            self.draws.append(chunk.end)
            self.temperatures.append(sequence.request.sampling.temperature)


def _slots(table: Sequence[int], start: int, end: int, page_size: int) -> list[int]:
    slots: list[int] = []
    while start < end:
        page, place = divmod(start, page_size)
        count = min(page_size - place, end - start)
        first = table[page] * page_size + place
        slots += range(first, first + count)
        start += count
    return slots
