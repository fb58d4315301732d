"""Stands in for a model where the engine around it is what counts: quick, and any wrong page changes its answer.

Every token leaves a number in its page: which token, at which position. The logits of a row are drawn by what all its
visible pages hold, in a full and in a sliding layer. `ReadingRunner` reads the pages through the tables on the device;
`logits_rows` computes the same from a list of tokens, without pages.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from gptoss_dist.engine.batch import Batch
from gptoss_dist.engine.paged_engine import PagedEngine
from gptoss_dist.engine.size import CacheSize
from gptoss_dist.runtime.dist import RankGroup
from gptoss_dist.runtime.mesh import Ranks
from gptoss_dist.schema.engine import EngineConf

VOCABULARY = 64
CONTEXT = 4096
_ROWS = 4096
_WORD = (1 << 64) - 1
_SHIFT = 40


class Answers:
    """The function that takes the place of a model's weights."""

    def __init__(self, window: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.window = window
        self.weights = torch.randint(-(2**62), 2**62, (2, CONTEXT), generator=generator)
        self.logits = torch.randn(_ROWS, VOCABULARY, generator=generator) * 2

    def logits_rows(self, tokens: list[int], first: int) -> torch.Tensor:
        """Rows of `logits` after each token from place `first` on."""
        full_weights, sliding_weights = self.weights.tolist()
        values = [token * CONTEXT + place + 1 for place, token in enumerate(tokens)]
        full, rows = 0, []
        for place, value in enumerate(values):
            full = (full + value * full_weights[place]) & _WORD
            if place >= first:
                seen = range(max(0, place - self.window + 1), place + 1)
                sliding = sum(values[at] * sliding_weights[at] for at in seen)
                rows.append(((full + sliding) & _WORD) >> _SHIFT & (_ROWS - 1))
        return torch.tensor(rows)


class ReadingRunner:
    """A model of `answers` over pages of its own, which begin with what no token leaves."""

    def __init__(self, answers: Answers, size: CacheSize, page_size: int) -> None:
        self._answers, self._page_size = answers, page_size
        self._full = torch.full((size.full_pages * page_size,), -(10**15))
        self._sliding = torch.full((size.sliding_pages * page_size,), -(10**15))
        self.batches = 0

    def run(self, batch: Batch) -> torch.Tensor:
        self.batches += 1
        values_T = batch.ids_T * CONTEXT + batch.positions_T + 1
        self._full[batch.full_slots_T] = values_T
        self._sliding[batch.sliding_slots_T] = values_T
        rows = [number for number, chunk in enumerate(batch.chunks) if chunk.samples]
        end_R1 = batch.positions_T[batch.sampled].unsqueeze(1)
        full_RN = torch.cat((batch.full_table_SN, batch.full_table_CN))[rows]
        sliding_RN = torch.cat((batch.sliding_table_SN, batch.sliding_table_CN))[rows]
        place_P = torch.arange(full_RN.shape[1] * self._page_size)
        seen_RP = place_P <= end_R1
        total_R = self._read(self._full, full_RN, seen_RP, self._answers.weights[0])
        seen_RP &= place_P > end_R1 - self._answers.window
        total_R += self._read(self._sliding, sliding_RN, seen_RP, self._answers.weights[1])
        return self._answers.logits[total_R >> _SHIFT & (_ROWS - 1)]

    def _read(
        self, cache: torch.Tensor, table_RN: torch.Tensor, seen_RP: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        size = self._page_size
        slots_RP = (table_RN.long().unsqueeze(2) * size + torch.arange(size)).flatten(1)
        assert bool((slots_RP[seen_RP] >= 0).all()), "a position that is seen has no page"
        values_RP = cache[slots_RP.clamp(min=0)] * weights[: slots_RP.shape[1]]
        return values_RP.masked_fill(~seen_RP, 0).sum(dim=1)


def reading_engine(
    answers: Answers,
    size: CacheSize,
    lag: int = 1,
    runner: Any = None,
    vocabulary: int = VOCABULARY,
    context: int = CONTEXT,
    group: RankGroup | None = None,
    ranks: Ranks | None = None,
    **conf: int,
) -> PagedEngine:
    """A paged engine, on one rank unless said, over a `ReadingRunner`, or another `runner`."""
    settings = EngineConf(name="test", **{"page_size": 4, "step_tokens": 64, "max_running": 16, **conf})
    shape = SimpleNamespace(vocab=vocabulary, max_position=context, sliding_window=answers.window)
    loaded: Any = SimpleNamespace(checkpoint=SimpleNamespace(shape=shape))
    group, ranks = group or RankGroup(0, 0, 1, torch.device("cpu")), ranks or Ranks(1, 1, 0, 0, None)
    runner = runner or ReadingRunner(answers, size, settings.page_size)
    return PagedEngine(loaded, group, ranks, settings, size, 2, lag=lag, runner=runner)
