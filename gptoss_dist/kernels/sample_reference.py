"""Sampling over a vocabulary that is sharded over ranks, in plain torch: no logits are gathered.

Gumbel-max: with independent standard Gumbel noise g, the argmax of logit + temperature · g is a sample of the softmax
of logit / temperature (Gumbel 1954; Maddison, Tarlow, Minka, arXiv:1411.0030); written this way a temperature of 0 is
the plain argmax and no temperature overflows. The noise is a pure function of (seed, position, token id), by the
counter-based generator Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC
2011): neither the number of shards nor the rest of the batch changes a choice.

Key: the 64-bit seed. Counter: (token id // 4, low 32 bits of the position, 0, 0); word token id % 4 of the output.

Shape legend: R rows (requests), V columns of the vocabulary here, G shards.
"""

from __future__ import annotations

import torch

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
SMALL = 0.125
"""Below this −log(1 − w) is summed as a series, because 1 − w would lose the digits of w."""
SERIES_TERMS = 8
LARGEST = 1 - 2.0**-24
"""The largest float32 below 1: words that round to 1 count as this."""

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def best_of_shard(
    logits_RV: torch.Tensor, first: int, temperature_R: torch.Tensor, seed_R: torch.Tensor, position_R: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(score_R float32, token_R int64): the best of this rank's columns, vocabulary ids first, first + 1, ….

    Equal scores: the lowest id. −inf is never chosen; a row of nothing else gives score −inf and token −1. A NaN in a
    row gives score NaN and token −1. `seed_R` and `position_R` are integers, `temperature_R` is float32, at least 0.
    """
    token_V = torch.arange(first, first + logits_RV.shape[1], device=logits_RV.device)
    logits_RV = logits_RV.to(torch.float32)
    noise_RV = gumbel(uniform_words(seed_R[:, None], position_R[:, None], token_V))
    score_RV = logits_RV + temperature_R[:, None] * noise_RV
    score_R = score_RV.amax(dim=1)  # NaN if any is
    token_R = token_V[(score_RV == score_R[:, None]).int().argmax(dim=1)]
    return score_R, token_R.masked_fill(~(score_R > -torch.inf), -1)


def merge_shards(score_GR: torch.Tensor, token_GR: torch.Tensor) -> torch.Tensor:
    """token_R int64: the best over the shards, the lowest id among equal scores; −1 where a shard had NaN or none had
    anything to choose."""
    score_R = score_GR.amax(dim=0)
    none = torch.iinfo(torch.int64).max
    token_R = token_GR.masked_fill(score_GR != score_R, none).amin(dim=0)
    return token_R.masked_fill(~(score_R > -torch.inf), -1)


def philox(counter: Words, key: tuple[torch.Tensor, torch.Tensor]) -> Words:
    """Philox4x32-10 of 32-bit words held in int64 tensors."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # int64 wraps: the low 64 bits are right
        c0, c1 = ((product1 >> 32) & _WORD) ^ c1 ^ k0, product1 & _WORD
        c2, c3 = ((product0 >> 32) & _WORD) ^ c3 ^ k1, product0 & _WORD
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


def uniform_words(seed: torch.Tensor, position: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """The 32-bit word of every (seed, position, token); int64.

    Seed and position are integers that broadcast, and the token's dimension comes last: (R, 1), (R, 1) and (V,) give
    (R, V). Neighbouring tokens share a counter, and its four words are computed once.
    """
    block, block_of_token = torch.unique_consecutive(token // 4, return_inverse=True)
    zero = torch.zeros_like(block)
    words = philox((block, position & _WORD, zero, zero), (seed & _WORD, (seed >> 32) & _WORD))
    return torch.stack(words, dim=-1).flatten(-2).index_select(-1, 4 * block_of_token + token % 4)


def gumbel(words: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise −log(−log(1 − w)), w = (word + 1/2) · 2^-32, float32.

    The noise is large where w is small, and there w keeps all its digits: the tail that decides among 200,000 tokens
    is as fine as 32 bits allow.
    """
    w = ((words.to(torch.float32) + 0.5) * 2.0**-32).clamp(max=LARGEST)
    series = torch.full_like(w, 1 / SERIES_TERMS)
    for term in range(SERIES_TERMS - 1, 0, -1):
        series = series * w + 1 / term
    return -torch.where(w < SMALL, series * w, -torch.log(1 - w)).log()
