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
    places_W: torch.Tensor
    """int64: which of R."""

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


def logprob_rows_of(rows: Sequence[Row], places: Sequence[int], staging: Staging) -> LogprobRows | None:
    """Those of the careful rows of a step, which are at these places of R; None if nobody wants any."""
    counts = [(number, row.request.sampling.logprobs) for number, row in enumerate(rows)]
    numbers = [number for number, count in counts if count is not None]
    if not numbers:
        return None
    wanted = tuple((rows[number].request.id, count) for number, count in counts if count is not None)
    sent = staging.send([(torch.int64, numbers), (torch.int64, [places[number] for number in numbers])])
    return LogprobRows(wanted, *sent)


def logprobs_of(logits_WV: torch.Tensor, tokens_W: torch.Tensor, most: int) -> Logprobs:
    """Of the model's own logits, with the `most` likeliest; where no token was chosen, of any: nobody looks at it."""
    logprobs_WV = logits_WV.log_softmax(dim=1, dtype=torch.float32)
    top = logprobs_WV.topk(most, dim=1)
    chosen_W = logprobs_WV.gather(1, tokens_W.clamp(min=0).unsqueeze(1)).squeeze(1)
    return Logprobs(top.indices, chosen_W, top.values)


def by_request(wanted: LogprobRows, found: Logprobs) -> dict[str, TokenLogprobs]:
    """What is on the host, by the id of the request."""
    top_tokens, chosen, top_values = (part.tolist() for part in found)
    return {
        name: TokenLogprobs(chosen[row], tuple(zip(top_tokens[row], top_values[row], strict=True))[:count])
        for row, (name, count) in enumerate(wanted.wanted)
    }
