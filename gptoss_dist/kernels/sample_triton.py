"""Sampling over a sharded vocabulary in Triton. The reference is `sample_reference`: same words, same choice.

Every program takes one row and one block of columns and leaves its best; a second launch merges the blocks, and the
same kernel merges the shards of the ranks. Blocks are aligned to vocabulary ids that are multiples of 4, since four ids
share one call of the generator.

Shape legend: R rows (requests), V columns of the vocabulary here, G shards or blocks.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gptoss_dist.kernels import sample_reference
from gptoss_dist.kernels.blocks import blocks_of, padded_to_power

_COLUMNS = 1024
_SMALL = tl.constexpr(sample_reference.SMALL)
_TERMS = tl.constexpr(sample_reference.SERIES_TERMS)
_LARGEST = tl.constexpr(sample_reference.LARGEST)
_NO_TOKEN = tl.constexpr(2**63 - 1)


def best_of_shard(
    logits_RV: torch.Tensor, first: int, temperature_R: torch.Tensor, seed_R: torch.Tensor, position_R: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `sample_reference.best_of_shard`. `seed_R` and `position_R` are int64; columns must be contiguous."""
    (rows, columns), device = logits_RV.shape, logits_RV.device
    assert logits_RV.stride(1) == 1
    assert seed_R.dtype == position_R.dtype == torch.int64
    assert all(part.is_contiguous() for part in (temperature_R, seed_R, position_R))
    blocks = blocks_of(first % 4 + columns, _COLUMNS)
    score_GR = torch.empty((blocks, rows), dtype=torch.float32, device=device)
    token_GR = torch.empty((blocks, rows), dtype=torch.int64, device=device)
    if rows:
        _best_of_block_kernel[(blocks, rows)](
            logits_RV,
            temperature_R,
            seed_R,
            position_R,
            score_GR,
            token_GR,
            logits_RV.stride(0),
            columns,
            first,
            rows,
            GROUPS=_COLUMNS // 4,
            num_warps=4,
        )
    return _merge(score_GR, token_GR)


def merge_shards(score_GR: torch.Tensor, token_GR: torch.Tensor) -> torch.Tensor:
    """See `sample_reference.merge_shards`."""
    return _merge(score_GR.contiguous(), token_GR.contiguous())[1]


def _merge(score_GR: torch.Tensor, token_GR: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    shards, rows = score_GR.shape
    score_R = torch.empty(rows, dtype=torch.float32, device=score_GR.device)
    token_R = torch.empty(rows, dtype=torch.int64, device=score_GR.device)
    if rows:
        block = padded_to_power(shards)
        _merge_kernel[(rows,)](score_GR, token_GR, score_R, token_R, rows, SHARDS=shards, BLOCK=block, num_warps=1)
    return score_R, token_R


@triton.jit
def uniform_words(seed, position, group):
    """The words of ids 4·group … 4·group + 3, in order: [4 · len(group)] uint32."""
    zero = group * 0
    place = zero + position.to(tl.int32)
    w0, w1, w2, w3 = tl.philox(seed, group, place, zero, zero)
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (group.shape[0] * 4,))


@triton.jit
def gumbel(words):
    """See `sample_reference.gumbel`."""
    w = tl.minimum((words.to(tl.float32) + 0.5) * 2.3283064365386963e-10, _LARGEST)
    series = tl.full(w.shape, 1 / _TERMS, tl.float32)
    for term in tl.static_range(_TERMS - 1, 0, -1):
        series = tl.fma(series, w, 1 / term)
    return -tl.log(tl.where(w < _SMALL, series * w, -tl.log(1.0 - w)))


@triton.jit
def _best(score, token):
    """(score, token) of the best: NaN and −1 if any is NaN, −inf and −1 if none is above −inf."""
    broken = tl.max((score != score).to(tl.int32), axis=0) > 0
    best = tl.max(tl.where(score == score, score, -float("inf")), axis=0)
    lowest = tl.min(tl.where(score == best, token, _NO_TOKEN), axis=0)
    found = (best > -float("inf")) & (broken == 0)
    return tl.where(broken, float("nan"), best), tl.where(found, lowest, -1)


@triton.jit(do_not_specialize=["rows"])
def _best_of_block_kernel(
    logits, temperature, seed, position, best_score, best_token, stride, columns, first, rows, GROUPS: tl.constexpr
):  # fmt: skip
    """One row, 4·GROUPS vocabulary ids from a multiple of 4 on."""
    row = tl.program_id(1).to(tl.int64)
    group = first // 4 + tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    token = (first // 4 + tl.program_id(0) * GROUPS) * 4 + tl.arange(0, GROUPS * 4)
    column = token - first
    inside = (column >= 0) & (column < columns)
    score = tl.load(logits + row * stride + column, mask=inside, other=-float("inf")).to(tl.float32)
    heat = tl.load(temperature + row)
    if heat > 0:
        noise = gumbel(uniform_words(tl.load(seed + row), tl.load(position + row), group))
        score = tl.fma(noise, heat, score)  # written out, so that every variant of this kernel rounds alike
    score, chosen = _best(score, token.to(tl.int64))
    place = tl.program_id(0) * rows + row
    tl.store(best_score + place, score)
    tl.store(best_token + place, chosen)


@triton.jit(do_not_specialize=["rows"])
def _merge_kernel(score, token, best_score, best_token, rows, SHARDS: tl.constexpr, BLOCK: tl.constexpr):
    """One row over all its shards."""
    row = tl.program_id(0)
    shard = tl.arange(0, BLOCK)
    scores = tl.load(score + shard * rows + row, mask=shard < SHARDS, other=-float("inf"))
    tokens = tl.load(token + shard * rows + row, mask=shard < SHARDS, other=-1)
    scores, chosen = _best(scores, tokens)
    tl.store(best_score + row, scores)
    tl.store(best_token + row, chosen)
