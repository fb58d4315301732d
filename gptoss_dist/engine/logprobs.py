"""Log probabilities of the tokens of a step, for all requests that ask for them at once.

Shape legend: L careful rows of a step, W of them that want log probabilities, M the most tokens that one wants, V
vocabulary, R rows that choose a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from gptoss_dist.engine.request import Row, TokenLogprobs
from gptoss_dist.engine.staging import Staging


class LogprobRows(NamedTuple):
    """Who wants them."""

    wanted: tuple[tuple[str, int], ...]
    """Request and how many of the likeliest tokens, for each of W."""
    rows_W: torch.Tensor
    """int64: which of L."""

    @property
    def most(self) -> int:
        """M."""
        return max(count for _, count in self.wanted)


class Logprobs(NamedTuple):
    """Natural logarithms of probabilities before temperature, penalties and cuts."""

    top_tokens_WM: torch.Tensor
    """int64."""
    chosen_W: torch.Tensor
    """float32."""
    top_values_WM: torch.Tensor


def logprob_rows_of(rows: Sequence[Row], staging: Staging) -> LogprobRows | None:
    """Those of the careful rows of a step; None if nobody wants any."""
    counts = [(number, row.request.sampling.logprobs) for number, row in enumerate(rows)]
    numbers = [number for number, count in counts if count is not None]
    if not numbers:
        return None
    wanted = tuple((rows[number].request.id, count) for number, count in counts if count is not None)
    return LogprobRows(wanted, *staging.send([(torch.int64, numbers)]))


def logprobs_of(logits_LV: torch.Tensor, tokens_L: torch.Tensor, wanted: LogprobRows) -> Logprobs:
    """Of the model's own logits; where no token was chosen, of any token: nobody looks at it."""
    logprobs_WV = logits_LV.index_select(0, wanted.rows_W).log_softmax(dim=1)
    tokens_W1 = tokens_L.index_select(0, wanted.rows_W).clamp(min=0).unsqueeze(1)
    top = logprobs_WV.topk(wanted.most, dim=1)
    return Logprobs(top.indices, logprobs_WV.gather(1, tokens_W1).squeeze(1), top.values)


def by_request(wanted: LogprobRows, found: Logprobs) -> dict[str, TokenLogprobs]:
    """What is on the host, by the id of the request."""
    top_tokens, chosen, top_values = (part.tolist() for part in found)
    return {
        name: TokenLogprobs(chosen[row], tuple(zip(top_tokens[row], top_values[row], strict=True))[:count])
        for row, (name, count) in enumerate(wanted.wanted)
    }
