"""The memory that decode steps read and write, at the same place in every step, and how a batch gets into it.

    5 sequences ──► buffers of 64 rows, of which 8 are played: rows 5, 6 and 7 repeat row 4, and keep nothing

Shape legend: S sequences (rows), N pages a table, V rows of the vocabulary here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch

from gptoss_dist.engine.copies import copy_all
from gptoss_dist.engine.sampler import Draw
from gptoss_dist.engine.step_input import Places, StepInput


@dataclass(frozen=True)
class DecodeInput:
    """One token of each of S sequences, on the device."""

    ids_S: torch.Tensor
    """int64."""
    position_S: torch.Tensor
    """int32."""
    full_slot_S: torch.Tensor
    """int64: where key and value go in the layers of each kind; -1: nowhere."""
    sliding_slot_S: torch.Tensor
    full_table_SN: torch.Tensor
    """int32."""
    sliding_table_SN: torch.Tensor
    temperature_S: torch.Tensor
    """What the choice of the next token depends on besides the logits: see `sampler.Draw`."""
    seed_S: torch.Tensor
    place_S: torch.Tensor

    @property
    def draw(self) -> Draw:
        """The last three."""
        return Draw(self.temperature_S, self.seed_S, self.place_S)

    @property
    def count(self) -> int:
        """S."""
        return self.ids_S.shape[0]

    @property
    def pages(self) -> int:
        """N."""
        return self.full_table_SN.shape[1]

    def narrow(self, first: int, end: int, pages: int) -> DecodeInput:
        """Views of some rows, and of the first pages of their tables."""
        rows = slice(first, end)
        return DecodeInput(
            self.ids_S[rows],
            self.position_S[rows],
            self.full_slot_S[rows],
            self.sliding_slot_S[rows],
            self.full_table_SN[rows, :pages],
            self.sliding_table_SN[rows, :pages],
            self.temperature_S[rows],
            self.seed_S[rows],
            self.place_S[rows],
        )

    def tensors(self) -> list[torch.Tensor]:
        """All of them, in order."""
        return [getattr(self, one.name) for one in fields(self)]

    def as_step(self) -> StepInput:
        """The same as a step of the model."""
        none = self.full_table_SN[:0]
        return StepInput(
            ids_T=self.ids_S,
            position_T=self.position_S,
            decoding=self.count,
            full=Places(self.full_slot_S, self.full_table_SN, none),
            sliding=Places(self.sliding_slot_S, self.sliding_table_SN, none),
            chunks=None,
            sampled_R=None,
        )


class DecodeBuffers:
    """The memory that the graphs read: `rows` sequences with tables of `pages` pages."""

    def __init__(self, rows: int, pages: int, device: torch.device) -> None:
        """Rows that keep nothing."""

        def full(value: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        self.all = DecodeInput(
            ids_S=full(0, torch.int64, rows),
            position_S=full(0, torch.int32, rows),
            full_slot_S=full(-1, torch.int64, rows),
            sliding_slot_S=full(-1, torch.int64, rows),
            full_table_SN=full(0, torch.int32, rows, pages),
            sliding_table_SN=full(0, torch.int32, rows, pages),
            temperature_S=full(0, torch.float32, rows),
            seed_S=full(0, torch.int64, rows),
            place_S=full(0, torch.int64, rows),
        )
        self._nowhere = full(-1, torch.int64, 1)

    def fill(self, given: DecodeInput, rows: int) -> None:
        """Copy `given` in, and repeat its last row up to `rows` rows that keep nothing. Asynchronous."""
        count, pages = given.count, given.pages
        last = given.narrow(count - 1, count, pages)
        padding = replace(last, full_slot_S=self._nowhere, sliding_slot_S=self._nowhere)
        copy_all([
            *zip(given.tensors(), self.all.narrow(0, count, pages).tensors(), strict=True),
            *zip(padding.tensors(), self.all.narrow(count, rows, pages).tensors(), strict=True),
        ])  # fmt: skip


class DecodeOutput(NamedTuple):
    """What a step writes; it stays until the next one."""

    logits_SV: torch.Tensor
    tokens_S: torch.Tensor
    """int64: what each row would choose from its logits and temperature alone."""

    def narrow(self, rows: int) -> DecodeOutput:
        """Views of the first rows."""
        return DecodeOutput(self.logits_SV[:rows], self.tokens_S[:rows])
