"""Tokens that are left out of a draw, in plain torch: top-k, then top-p over what it left, then min-p.

Top-p as in arXiv:1904.09751, min-p as in arXiv:2407.01082. All of it is defined on two numbers of each token, which are
the same on every device, for every number of rows and in every order of a sum, to the last bit:

- its distance, how far its logit is below the best of its row, in float32. The smaller, the likelier;
- its weight, `WHOLE` · 2**-(distance · rate) as a whole number, where the rate is log2(e) / temperature: what is
  proportional to its probability. The power is computed from float32 products and sums in a given order, each rounded
  as IEEE 754 has it (`weights`): a weight is off by 5e-6 of itself at most, as an exponential of float32 scores is, and
  by 1 for being cut to a whole number.

A token of weight 0, less likely than 2**-38 of the best, is counted by no cut; no noise of the draw reaches so far
(`sample_reference`: 22.9 + 2.9 nats, which are 37.2 bits).

Shape legend: R rows of logits, L of them that are taken, K of these that are cut at once, V vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

WHOLE_BITS = 38
WHOLE = 1 << WHOLE_BITS
"""The weight of the best token. 2**24 such tokens fit an int64."""
POWER = (
    1.0,
    -0.6931471824645996,
    0.2402234971523285,
    -0.055503811687231064,
    0.00966636836528778,
    -0.0013381302123889327,
)
"""Float32 coefficients of a polynomial that is 2**-x for x from -1/2 to 1/2, within 3e-7: what it has beyond 1, over x,
meets that of the power at the five Chebyshev points."""
FRACTION_BITS = 24
"""Float32 numbers from 1/2 to 2 are whole multiples of 2**-24."""
MOST_BITS = 63.0
"""From here on a weight is 0 in any case."""
_LEAST_RATE, _MOST_RATE = 1e-37, 1e38
ROWS = 16
"""Rows sorted at once: bounds memory."""


class Cuts(NamedTuple):
    """How L rows are cut; where a row asks for no cut of a kind, its number cuts nothing."""

    rate_L: torch.Tensor
    """float32: see `rate_of`."""
    top_k_L: torch.Tensor
    """int64, at least 1; more than V: none."""
    top_p_L: torch.Tensor
    """float64, above 0; 1: none."""
    farthest_L: torch.Tensor
    """float32: the largest distance that min-p leaves (`farthest_of`)."""


def rate_of(temperature: float) -> float:
    """Powers of two that a token's weight falls for each unit of distance."""
    return min(max(math.log2(math.e) / temperature, _LEAST_RATE), _MOST_RATE)


def farthest_of(min_p: float, temperature: float) -> float:
    """Of the tokens that are at least `min_p` times as likely as the best one, the largest distance."""
    return -math.log(min_p) * temperature if min_p > 0 else math.inf


def truncate(logits_RV: torch.Tensor, rows_L: torch.Tensor, cuts: Cuts) -> torch.Tensor:
    """[L, V]: the logits of `rows_L`, int64, with -inf in place of tokens that are cut; in float32 or what is given.

    Tokens as likely as the `top_k`-th all stay. The token that crosses top-p stays, and among tokens as likely as that
    one the lower ids do. A NaN stays and counts as -inf.
    """
    logits_LV = logits_RV.index_select(0, rows_L)
    asks_L = (cuts.top_k_L <= logits_LV.shape[1]) | (cuts.top_p_L < 1) | (cuts.farthest_L < torch.inf)
    for rows_K in torch.split(asks_L.nonzero().flatten(), ROWS):
        logits_KV = logits_LV.index_select(0, rows_K)
        cut_KV = _cut(distances(logits_KV), Cuts(*(numbers.index_select(0, rows_K) for numbers in cuts)))
        cut_KV.logical_and_(~logits_KV.isnan())
        logits_LV.index_copy_(0, rows_K, logits_KV.masked_fill_(cut_KV, -torch.inf))
    return logits_LV


def distances(logits_KV: torch.Tensor) -> torch.Tensor:
    """float32, at least 0: from the best of the row; infinite for -inf and NaN."""
    known_KV = logits_KV.float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    best_K1 = known_KV.amax(dim=1, keepdim=True)
    distance_KV = (best_K1 - known_KV).masked_fill_(known_KV == best_K1, 0.0)
    return distance_KV.masked_fill_(known_KV == -torch.inf, torch.inf)


def weights(distance_KV: torch.Tensor, rate_K1: torch.Tensor) -> torch.Tensor:
    """int64, up to `WHOLE`."""
    bits_KV = (distance_KV * rate_K1).clamp_(max=MOST_BITS)
    whole_KV = bits_KV.round()
    rest_KV = bits_KV - whole_KV
    power_KV = torch.full_like(rest_KV, POWER[-1])
    for coefficient in POWER[-2::-1]:
        power_KV = power_KV * rest_KV + coefficient
    return ((power_KV * (1 << FRACTION_BITS)).long() << (WHOLE_BITS - FRACTION_BITS)) >> whole_KV.long()


def _cut(distance_KV: torch.Tensor, cuts: Cuts) -> torch.Tensor:
    """Which tokens of the rows are cut."""
    rate_K1, top_k_K1, top_p_K1, farthest_K1 = (numbers.unsqueeze(1) for numbers in cuts)
    ordered_KV, order_KV = distance_KV.sort(dim=1, stable=True)
    weight_KV = weights(ordered_KV, rate_K1)
    last_K1 = ordered_KV.gather(1, top_k_K1.clamp(max=distance_KV.shape[1]) - 1)
    last_K1 = last_K1.masked_fill_(top_k_K1 > (weight_KV > 0).sum(dim=1, keepdim=True), torch.inf)
    weight_KV.masked_fill_(ordered_KV > last_K1, 0)
    before_KV = weight_KV.cumsum(dim=1).sub_(weight_KV)
    needed_K1 = (weight_KV.sum(dim=1, keepdim=True) * top_p_K1).ceil_().long()
    cut_KV = (before_KV >= needed_K1).logical_and_(top_p_K1 < 1)
    cut_KV.logical_or_(ordered_KV > last_K1).logical_or_(ordered_KV > farthest_K1)
    return torch.empty_like(cut_KV).scatter_(1, order_KV, cut_KV)
