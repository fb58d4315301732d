"""One step of the scheduler as tensors: which tokens go through the model, and where their keys and values are kept.

    rows of the step   │ decoding: one token each │ chunk │ chunk … │
                         fed back on the device     ids from the host

The page tables live on the device (`device_tables`). The last token of a sequence lives there too: whoever chooses one
writes it to `fed`, and the next step reads it from there, so that the host needs not know it.

Shape legend: T tokens of the step, S decoding sequences (the first S rows), C chunks after them, N pages of the longest
table, R rows that choose a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gptoss_dist.engine.batch_numbers import Numbers, Rows, numbers_of
from gptoss_dist.engine.decode_buffers import DecodeInput
from gptoss_dist.engine.device_tables import DeviceTables
from gptoss_dist.engine.sampler import Draw
from gptoss_dist.engine.staging import Staging
from gptoss_dist.engine.step_input import Chunks, Places, StepInput
from gptoss_dist.engine.step_plan import Chunk


@dataclass(frozen=True)
class Batch:
    """The chunks of one step, one after the other. All tensors are on the device."""

    chunks: tuple[Chunk, ...]
    decoding: int
    """S: chunks whose one token was fed back; they come first."""
    ids_T: torch.Tensor
    """int64."""
    positions_T: torch.Tensor
    """int32."""
    full_slots_T: torch.Tensor
    """int64: where each token's key and value go in a layer with full attention: page × page size + place in it."""
    sliding_slots_T: torch.Tensor
    """The same in a sliding layer."""
    full_table_SN: torch.Tensor
    """int32: pages of the decoding sequences, padded with -1."""
    sliding_table_SN: torch.Tensor
    """The same in sliding layers; -1 also where the window has left a page."""
    full_table_CN: torch.Tensor
    """Those of the other chunks."""
    sliding_table_CN: torch.Tensor
    first_C: torch.Tensor
    """int32: row of the first token of a chunk, counted from row S."""
    count_C: torch.Tensor
    """int32: its tokens."""
    start_C: torch.Tensor
    """int32: position of its first token."""
    longest: int
    """The largest count of these chunks; 0 without any."""
    sampled: torch.Tensor
    """int64: rows of T after which a token is chosen, in the order of the chunks that choose one."""
    target_R: torch.Tensor
    """int64: where in `fed` the chosen tokens go."""
    draw: Draw

    @property
    def decode_only(self) -> bool:
        """Whether every row is a decoding sequence."""
        return self.decoding == len(self.chunks)

    def as_step(self) -> StepInput:
        """As the model's step takes it."""
        chunks = Chunks(self.first_C, self.count_C, self.start_C, self.longest)
        return StepInput(
            ids_T=self.ids_T,
            position_T=self.positions_T,
            decoding=self.decoding,
            full=Places(self.full_slots_T, self.full_table_SN, self.full_table_CN),
            sliding=Places(self.sliding_slots_T, self.sliding_table_SN, self.sliding_table_CN),
            chunks=None if self.decode_only else chunks,
            sampled_R=None if self.decode_only else self.sampled,
        )

    def as_decode(self) -> DecodeInput:
        """As the graphs take a batch of decoding sequences only, all of which choose a token."""
        return DecodeInput(
            ids_S=self.ids_T,
            position_S=self.positions_T,
            full_slot_S=self.full_slots_T,
            sliding_slot_S=self.sliding_slots_T,
            full_table_SN=self.full_table_SN,
            sliding_table_SN=self.sliding_table_SN,
            temperature_S=self.draw.temperature_R,
            seed_S=self.draw.seed_R,
            place_S=self.draw.position_R,
        )


class BatchBuilder:
    """Makes batches, and keeps on the device what lasts longer than one."""

    def __init__(self, page_size: int, max_running: int, max_pages: int, device: torch.device) -> None:
        """Tables of up to `max_pages` pages for each of `max_running` sequences, and their last tokens."""
        self.fed = torch.zeros(max_running + 1, dtype=torch.int64, device=device)
        """int64: the last token of the sequence in each slot; the place after them belongs to nobody."""
        self._page_size = page_size
        self._staging = Staging(device)
        self._tables = DeviceTables(max_running, max_pages, device)

    def build(self, chunks: Sequence[Chunk]) -> Batch:
        """The tensors of what `Scheduler.schedule` planned."""
        rows, size = Rows(), self._page_size
        for chunk in chunks:
            rows.add(chunk, size)
        updates = self._tables.updates(chunks)
        sent = Numbers(*self._staging.send(numbers_of(chunks, rows, updates)))
        full, sliding = self._tables.rows(updates.width, sent.newcomers, sent.places, sent.pages, sent.slots)
        decoding = len(chunks) - len(rows.first)
        sent.ids[:decoding] = self.fed.index_select(0, sent.slots[:decoding])
        return Batch(
            chunks=tuple(chunks),
            decoding=decoding,
            ids_T=sent.ids,
            positions_T=sent.positions,
            full_slots_T=sent.full_slots,
            sliding_slots_T=sent.sliding_slots,
            full_table_SN=full[:decoding],
            sliding_table_SN=sliding[:decoding],
            full_table_CN=full[decoding:],
            sliding_table_CN=sliding[decoding:],
            first_C=sent.first,
            count_C=sent.counts,
            start_C=sent.start,
            longest=max(rows.count, default=0),
            sampled=sent.sampled,
            target_R=sent.targets,
            draw=Draw(sent.temperatures, sent.seeds, sent.draws),
        )

    def feed(self, batch: Batch, tokens_R: torch.Tensor) -> None:
        """Keep the tokens that were chosen after `batch`; where there is none, any token: nobody will ask for it."""
        self.fed.index_copy_(0, batch.target_R, tokens_R.clamp(min=0))
