"""The page tables of running sequences on the device: a row for each slot, of which a step sends only what is new.

Shape legend: X slots, N pages of the longest table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gptoss_dist.engine.step_plan import Chunk


@dataclass(frozen=True)
class Updates:
    """What is new in the tables on the device."""

    newcomers: list[int]
    """Slots whose rows begin anew."""
    places: list[int]
    """Index into all tables laid flat."""
    pages: list[int]
    width: int
    """Pages of the longest table of the step."""


class DeviceTables:
    """The page tables of both kinds of layers on the device, and how much of each has been sent."""

    def __init__(self, max_running: int, max_pages: int, device: torch.device) -> None:
        """Tables of up to `max_pages` pages for each of `max_running` sequences."""
        self._rows, self._pages = max_running, max_pages
        self._tables_2XN = torch.full((2, max_running, max_pages), -1, dtype=torch.int32, device=device)
        self._lives = [(-1, -1)] * max_running  # who has the slot: one that gave way comes back with other pages
        self._sent = [0] * max_running  # pages of its tables
        self._hidden = [0] * max_running  # of these, how many at the start its sliding table has let go

    def updates(self, chunks: Sequence[Chunk]) -> Updates:
        """What to send for `chunks`: new pages, and -1 where a sliding layer let one go."""
        found = Updates([], [], [], max((len(chunk.sequence.full_table) for chunk in chunks), default=0))
        sliding = self._rows * self._pages
        for chunk in chunks:
            sequence, slot = chunk.sequence, chunk.sequence.slot
            life = (sequence.arrival, sequence.preemptions)
            if self._lives[slot] != life:
                self._lives[slot], self._sent[slot], self._hidden[slot] = life, 0, 0
                found.newcomers.append(slot)
            base, sent, count = slot * self._pages, self._sent[slot], len(sequence.full_table)
            if sent < count:
                places = range(base + sent, base + count)
                found.places.extend(places)
                found.pages.extend(sequence.full_table[sent:])
                found.places.extend(range(places.start + sliding, places.stop + sliding))
                found.pages.extend(sequence.sliding_table[sent:])
                self._sent[slot] = count
            hidden = self._hidden[slot]
            while hidden < count and sequence.sliding_table[hidden] < 0:
                if hidden < sent:
                    found.places.append(sliding + base + hidden)
                    found.pages.append(-1)
                hidden += 1
            self._hidden[slot] = hidden
        return found

    def rows(
        self, width: int, newcomers: torch.Tensor, places: torch.Tensor, pages: torch.Tensor, slots: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The updates are made; then `width` pages of the tables of the full and of the sliding layers in these slots.

        All numbers come from the device: one that came from the host here would make it wait for the step before.
        """
        if len(newcomers):
            self._tables_2XN.index_fill_(1, newcomers, -1)
        if len(places):
            self._tables_2XN.view(-1).index_copy_(0, places, pages)
        full, sliding = self._tables_2XN[:, :, :width].index_select(1, slots)
        return full, sliding
