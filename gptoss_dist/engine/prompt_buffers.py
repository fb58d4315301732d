"""The memory that steps with prompts read where they are played from graphs, and how such a step gets into it.

    3 sequences decode, a chunk of 70 tokens, one of 9 ──► rows 0 … 63 decode │ rows 64 … 191, of 128 tokens

Rows beyond the real ones keep nothing and see nothing: their position is -1. They repeat the token before them, so that
those of a kind are all alike and choose the same experts: what pads a step makes it read few weights more.

Shape legend: T tokens of the step, S decoding sequences, C chunks, N pages a table, R rows that choose a token.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gptoss_dist.engine.copies import Copy, copy_all
from gptoss_dist.engine.sampler import Draw
from gptoss_dist.engine.step_input import Chunks, Places, StepInput


class PromptBuffers:
    """Room for so many running sequences, each of which decodes or has a chunk, and for the tokens of all chunks."""

    def __init__(self, running: int, tokens: int, pages: int, device: torch.device) -> None:
        """Nothing is in it."""

        def zeros(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        int64, int32, rows = torch.int64, torch.int32, running + tokens
        self._ids_T, self._position_T = zeros(int64, rows), zeros(int32, rows)
        self._slots_2T = zeros(int64, 2, rows).fill_(-1)
        self._tables_22RN = zeros(int32, 2, 2, running, pages)
        self._first_C, self._count_C, self._start_C = zeros(int32, 3, running)
        self._sampled_R = zeros(int64, running)
        self._draw = Draw(zeros(torch.float32, running), zeros(int64, running), zeros(int64, running))
        self._nowhere, self._unplaced, self._nothing = (
            zeros(int64, 1).fill_(-1),
            zeros(int32, 1).fill_(-1),
            zeros(int32, 1),
        )

    @property
    def running(self) -> int:
        """Sequences that there is room for."""
        return len(self._sampled_R)

    def views(self, decoding: int, tokens: int) -> tuple[StepInput, Draw]:
        """A step of so many decoding rows and tokens of chunks, which chooses a token for every running sequence."""
        rows = decoding + tokens

        def places(kind: int) -> Places:
            decode_RN, chunks_RN = self._tables_22RN[kind]
            return Places(self._slots_2T[kind, :rows], decode_RN[:decoding], chunks_RN)

        step = StepInput(
            ids_T=self._ids_T[:rows],
            position_T=self._position_T[:rows],
            decoding=decoding,
            full=places(0),
            sliding=places(1),
            chunks=Chunks(self._first_C, self._count_C, self._start_C, tokens, padded=True),
            sampled_R=self._sampled_R,
        )
        return step, self._draw

    def fill(self, given: StepInput, draw: Draw, decoding: int, tokens: int) -> None:
        """Copy a step in, whose decoding sequences all choose a token, as one of `views(decoding, tokens)`."""
        assert given.chunks is not None
        assert given.sampled_R is not None
        here, _ = self.views(decoding, tokens)
        copy_all([
            *self._rows(given, here),
            *self._chunks(given.chunks),
            *(copy for pair in ((given.full, here.full), (given.sliding, here.sliding)) for copy in _tables(*pair)),
            *((new_R, held_R[: len(new_R)]) for new_R, held_R in zip(draw, self._draw, strict=True)),
            *self._sampled(given.sampled_R, given.decoding, decoding),
        ])  # fmt: skip

    def _rows(self, given: StepInput, here: StepInput) -> Iterator[Copy]:
        """Each region's tokens and, after them, the last one again, nowhere."""
        regions = (
            (0, given.decoding, 0, here.decoding),
            (given.decoding, len(given.ids_T), here.decoding, len(here.ids_T)),
        )
        for first, end, begin, stop in regions:
            middle = begin + end - first
            yield given.ids_T[first:end], here.ids_T[begin:middle]
            yield given.ids_T[end - 1 : end], here.ids_T[middle:stop]
            yield given.position_T[first:end], here.position_T[begin:middle]
            yield self._unplaced, here.position_T[middle:stop]
            for new, held in ((given.full, here.full), (given.sliding, here.sliding)):
                yield new.slot_T[first:end], held.slot_T[begin:middle]
                yield self._nowhere, held.slot_T[middle:stop]

    def _chunks(self, given: Chunks) -> Iterator[Copy]:
        """The chunks; those that there are not have no tokens."""
        count = len(given.count_C)
        yield given.first_C, self._first_C[:count]
        yield given.start_C, self._start_C[:count]
        yield given.count_C, self._count_C[:count]
        yield self._nothing, self._count_C[count:]

    def _sampled(self, rows_R: torch.Tensor, decoding: int, decoding_here: int) -> Iterator[Copy]:
        """The rows that choose a token: those of chunks lie elsewhere here; after them the last one again."""
        shifted_R = rows_R + (decoding_here - decoding)
        yield rows_R[:decoding], self._sampled_R[:decoding]
        yield shifted_R[decoding:], self._sampled_R[decoding : len(rows_R)]
        last = shifted_R[-1:] if len(rows_R) > decoding else rows_R[-1:]
        yield (last if len(rows_R) else self._nothing.long()), self._sampled_R[len(rows_R) :]


def _tables(given: Places, here: Places) -> Iterator[Copy]:
    """As many rows and pages as are given."""
    for new_RN, held_RN in ((given.table_SN, here.table_SN), (given.table_CN, here.table_CN)):
        rows, pages = new_RN.shape
        yield new_RN, held_RN[:rows, :pages]
