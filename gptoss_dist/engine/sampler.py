"""From logits to one token: temperature, then top-k, top-p (arXiv:1904.09751) and min-p (arXiv:2407.01082).

A token is drawn by adding noise to the logits and taking the largest sum (the Gumbel-max trick, see
`gptoss_dist.kernels.sample_reference`). The noise depends on nothing but the request's seed, the place of the token in
the request and the token, so that neither neighbours nor a preemption change what is drawn; a cut only takes tokens
out.

Shape legend: V vocabulary, R rows that choose a token, H rows of them that are drawn, N tokens that may win.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from gptoss_dist.engine.request import Sampling
from gptoss_dist.kernels import sample_reference

BestOfShard = Callable[[torch.Tensor, int, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
MergeShards = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Draw(NamedTuple):
    """What the choice of each row's next token depends on besides its logits."""

    temperature_R: torch.Tensor
    """float32; 0: greedy."""
    seed_R: torch.Tensor
    """int64."""
    position_R: torch.Tensor
    """int64: place of the token to choose in its request, prompt first."""


class Drawing(NamedTuple):
    """How tokens are drawn on a device: see `gptoss_dist.kernels.sample_reference`."""

    best_of_shard: BestOfShard
    merge_shards: MergeShards


def drawing_on(device: torch.device) -> Drawing:
    """The kernels on a GPU, plain torch elsewhere; both draw the same tokens."""
    if device.type == "cuda":
        from gptoss_dist.kernels import sample_triton

        return Drawing(sample_triton.best_of_shard, sample_triton.merge_shards)
    return in_torch()


def in_torch() -> Drawing:
    """Plain torch on any device: what a reference is made of."""
    return Drawing(_best_in_torch, sample_reference.merge_shards)


_REACH = 26.0
"""More than any two noises differ: 32-bit words give noise between -2.9 and 22.9."""


def _best_in_torch(
    logits_RV: torch.Tensor, first: int, temperature_R: torch.Tensor, seed_R: torch.Tensor, position_R: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As the reference, which takes most of its time for noise that decides nothing.

    None is made where the temperature is 0, nor for tokens so far below the best that no noise brings them there.
    """
    score_R, token_R = logits_RV.float().max(dim=1)  # the first of equals; NaN if there is one
    token_R = (token_R + first).masked_fill(~(score_R > -torch.inf), -1)
    hot = ((temperature_R > 0) & (token_R >= 0)).nonzero().flatten()
    if len(hot):
        logits_HV, heat_H1 = logits_RV[hot].float(), temperature_R[hot].unsqueeze(1)
        near_N = (logits_HV >= score_R[hot].unsqueeze(1) - _REACH * heat_H1).any(dim=0).nonzero().flatten()
        words_HN = sample_reference.uniform_words(
            seed_R[hot].unsqueeze(1), position_R[hot].unsqueeze(1), near_N + first
        )
        score_R[hot], place_H = (logits_HV[:, near_N] + heat_H1 * sample_reference.gumbel(words_HN)).max(dim=1)
        token_R[hot] = near_N[place_H] + first
    return score_R, token_R


def kept(logits_V: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The logits in float32, -inf for the tokens that are cut.

    Tokens as likely as the `top_k`-th all stay; among tokens as likely as the last of the nucleus the lower ids do.
    """
    logits_V = logits_V.float()
    if not sampling.cuts:
        return logits_V
    scores_V = (logits_V - logits_V.max()) / sampling.temperature  # shifted, so that no temperature overflows
    if sampling.top_k is not None and sampling.top_k < scores_V.numel():
        scores_V = scores_V.masked_fill(scores_V < scores_V.topk(sampling.top_k).values[-1], -torch.inf)
    probabilities_V = scores_V.softmax(dim=-1)
    if sampling.top_p < 1:
        probabilities_V = _nucleus(probabilities_V, sampling.top_p)
    cut_V = probabilities_V == 0
    if sampling.min_p > 0:
        cut_V |= probabilities_V < sampling.min_p * probabilities_V.max()
    return logits_V.masked_fill(cut_V, -torch.inf)


def choose(logits_V: torch.Tensor, sampling: Sampling, position: int) -> torch.Tensor:
    """The token at `position` of a request, as an int64 tensor without dimensions; -1 if a logit is not a number.

    In plain torch on every device: this is the careful path, of which the reference engine is made too.
    """
    device = logits_V.device
    temperature_R = torch.tensor([sampling.temperature], dtype=torch.float32, device=device)
    seed_R, position_R = (torch.tensor([value], device=device) for value in (sampling.seed, position))
    return _best_in_torch(kept(logits_V, sampling).unsqueeze(0), 0, temperature_R, seed_R, position_R)[1][0]


def _nucleus(probabilities_V: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the likeliest tokens until their sum reaches `top_p`; the one that crosses it stays."""
    ordered_V, order_V = probabilities_V.sort(descending=True, stable=True)
    before_V = ordered_V.cumsum(dim=-1) - ordered_V
    return probabilities_V.masked_fill(
        torch.zeros_like(order_V, dtype=torch.bool).scatter(0, order_V, before_V >= top_p), 0
    )
