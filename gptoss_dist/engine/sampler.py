"""From logits to one token.

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
