"""The engine's step driven by a script, to compare with the model's own forward: for unit, rank and GPU tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from gptoss_dist.engine.step import Cache, Step
from gptoss_dist.engine.step_input import Chunks, Places, StepInput

Piece = tuple[int, int, int]
"""Sequence, position of the first token, number of tokens."""


@dataclass
class Paged:
    """Sequences over pages dealt out at random, in both kinds of layers; nothing but their own pages is readable."""

    ids: list[torch.Tensor]
    page_size: int
    window: int
    seed: int = 0

    def __post_init__(self) -> None:
        self.width = max(-(-len(one) // self.page_size) for one in self.ids)
        self.page_count = self.width * len(self.ids) + 3
        generator = torch.Generator().manual_seed(self.seed)
        self._tables = [
            torch.randperm(self.page_count, generator=generator)[: self.width * len(self.ids)].view(-1, self.width)
            for _ in range(2)
        ]

    def cache(self, weights: Any) -> list[Cache]:
        """Pages of NaN: whoever reads what was not written says so."""
        shape = (2, self.page_count, self.page_size, weights.kv_heads, weights.head_size)
        return [
            Cache(*torch.full(shape, torch.nan, dtype=weights.dtype, device=weights.device)) for _ in weights.layers
        ]

    def slots(self, kind: int, sequence: int, start: int, count: int) -> list[int]:
        table = self._tables[kind][sequence].tolist()
        return [
            table[at // self.page_size] * self.page_size + at % self.page_size for at in range(start, start + count)
        ]

    def table(self, kind: int, sequence: int, start: int, count: int) -> list[int]:
        """As the scheduler has it: -1 before the window in sliding layers, nothing after the last token."""
        pages = self._tables[kind][sequence].tolist()[: -(-(start + count) // self.page_size)]
        hidden = max(0, start - self.window + 1) // self.page_size if kind else 0
        return [-1] * hidden + pages[hidden:] + [-1] * (self.width - len(pages))

    def step_input(self, pieces: Sequence[Piece], device: torch.device, decode: bool = True) -> StepInput:
        """Pieces of one token first if `decode`; all other ones are chunks."""
        decoding = [piece for piece in pieces if decode and piece[2] == 1 and piece[1] > 0]
        rest = [piece for piece in pieces if piece not in decoding]
        order = decoding + rest

        def ints(values: Sequence[Any], dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        def places(kind: int) -> Places:
            slots = [slot for piece in order for slot in self.slots(kind, *piece)]
            tables = [[self.table(kind, *piece) for piece in part] for part in (decoding, rest)]
            return Places(ints(slots, torch.int64), *(ints(one).view(-1, self.width) for one in tables))

        firsts = [sum(count for _, _, count in rest[:number]) for number in range(len(rest))]
        chunks = Chunks(
            ints(firsts),
            ints([one[2] for one in rest]),
            ints([one[1] for one in rest]),
            max([0, *(p[2] for p in rest)]),
        )
        return StepInput(
            ids_T=torch.cat([self.ids[number][start : start + count] for number, start, count in order]).to(device),
            position_T=ints([at for _, start, count in order for at in range(start, start + count)]),
            decoding=len(decoding),
            full=places(0),
            sliding=places(1),
            chunks=chunks if rest else None,
            sampled_R=None,
        )


def run_script(step: Step, paged: Paged, script: Sequence[Sequence[Piece]], device: torch.device) -> list[torch.Tensor]:
    """The logits [tokens, V here] of every sequence, after a script that sends each of its tokens through once."""
    found: list[list[torch.Tensor]] = [[] for _ in paged.ids]
    for pieces in script:
        step_input = paged.step_input(pieces, device)
        logits = step(step_input)
        decoding = [piece for piece in pieces if piece[2] == 1 and piece[1] > 0]
        order = decoding + [piece for piece in pieces if piece not in decoding]
        for (number, _, count), rows in zip(order, logits.split([piece[2] for piece in order]), strict=True):
            assert count == len(rows)
            found[number].append(rows)
    return [torch.cat(rows) for rows in found]


def mixed_script(lengths: Sequence[int], prompts: Sequence[int], chunk: int) -> list[list[Piece]]:
    """Sequences begin one after the other, by chunks of `chunk` tokens, while those before them decode."""
    script, done = [], [0] * len(lengths)
    while any(at < length for at, length in zip(done, lengths, strict=True)):
        pieces = []
        for number, (length, prompt) in enumerate(zip(lengths, prompts, strict=True)):
            count = 1 if done[number] >= prompt else min(chunk, prompt - done[number])
            if done[number] < length:
                pieces.append((number, done[number], count))
            done[number] += count if done[number] < length else 0
            if count > 1:
                break
        script.append(pieces)
    return script


def whole_vocabulary(logits: torch.Tensor, split: bool, group: dist.ProcessGroup | None) -> torch.Tensor:
    """The parts of all ranks side by side."""
    if not split:
        return logits
    parts = [torch.empty_like(logits) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, logits.contiguous(), group=group)
    return torch.cat(parts, dim=1)


def random_ids(lengths: Sequence[int], vocabulary: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocabulary, (length,), generator=generator) for length in lengths]
