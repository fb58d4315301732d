"""From logits to one token: temperature, then top-k, top-p (arXiv:1904.09751) and min-p (arXiv:2407.01082).

Shape legend: V vocabulary.
"""

from __future__ import annotations

import torch

from gptoss_dist.engine.request import Sampling


def choose(logits_V: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
    """The next token as an int64 tensor without dimensions, on the device of the logits.

    `generator` lives on that device too; greedy sampling does not advance it. Tokens as likely as the `top_k`-th all
    stay; among tokens as likely as the last of the nucleus the lower ids do.
    """
    if sampling.temperature == 0:
        return logits_V.argmax()
    scores_V = logits_V.float()
    scores_V = (scores_V - scores_V.max()) / sampling.temperature  # shifted, so that no temperature overflows
    if sampling.top_k is not None and sampling.top_k < scores_V.numel():
        scores_V = scores_V.masked_fill(scores_V < scores_V.topk(sampling.top_k).values[-1], -torch.inf)
    probabilities_V = scores_V.softmax(dim=-1)
    if sampling.top_p < 1:
        probabilities_V = _nucleus(probabilities_V, sampling.top_p)
    if sampling.min_p > 0:
        floor = sampling.min_p * probabilities_V.max()
        probabilities_V = probabilities_V.masked_fill(probabilities_V < floor, 0)
    return torch.multinomial(probabilities_V, 1, generator=generator).squeeze(0)


def _nucleus(probabilities_V: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the likeliest tokens until their sum reaches `top_p`; the one that crosses it stays."""
    ordered_V, order_V = probabilities_V.sort(descending=True, stable=True)
    before_V = ordered_V.cumsum(dim=-1) - ordered_V
    return probabilities_V.masked_fill(
        torch.zeros_like(order_V, dtype=torch.bool).scatter(0, order_V, before_V >= top_p), 0
    )
