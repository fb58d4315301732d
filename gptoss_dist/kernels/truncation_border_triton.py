"""The border of a row among the tokens that are listed for it, in Triton."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from gptoss_dist.kernels.dependent_launch import let_next_start, wait_for_previous
from gptoss_dist.kernels.truncation_bins_triton import listed_bins, listed_place, record_size
from gptoss_dist.kernels.truncation_numbers_triton import (
    best_of_row,
    bits_of,
    distance_of,
    has_border,
    needed_of,
    weight_of,
)

_INFINITE = tl.constexpr(0x7F800000)
"""The bits of an infinite distance. Distances are at least 0, so they order as their bits do."""


@triton.jit
def _measured(logits, listed, first, length, best, rate, limit, BY: tl.constexpr, CHUNK: tl.constexpr):
    """(a number of each listed token, what it adds): its distance as bits and 1; its distance and weight, up to the
    distance `limit`; its id and weight, at that distance. Beyond the last token there are some that add nothing."""
    place = first + tl.arange(0, CHUNK)
    token = tl.load(listed + place, mask=place < length, other=0)
    logit = tl.load(logits + token, mask=place < length, other=-float("inf")).to(tl.float32)
    distance = distance_of(logit, best)
    weight, distance = weight_of(bits_of(distance, rate)), distance.to(tl.int32, bitcast=True)
    if BY == "count":
        number, adds = distance, (place < length).to(tl.int64)
    elif BY == "weight":
        number, adds = distance, tl.where(distance <= limit, weight, 0)
    else:
        number, adds = token, tl.where(distance == limit, weight, 0)
    return number, adds


@triton.jit
def _listed_weight(logits, listed, length, best, rate, limit, CHUNK: tl.constexpr):
    """Of the listed tokens up to the distance `limit`."""
    total = tl.zeros([], tl.int64)
    for first in range(0, length, CHUNK):
        total += tl.sum(_measured(logits, listed, first, length, best, rate, limit, "weight", CHUNK)[1])
    return total


@triton.jit
def _smallest(logits, listed, length, best, rate, limit, least, BY: tl.constexpr, CHUNK: tl.constexpr):
    """(the smallest number up to which the listed tokens add up to `least`, what those of smaller ones add)

    Found bit by bit, of those bits only in which numbers differ from the smallest one.
    """
    number, adds = _measured(logits, listed, 0, length, best, rate, limit, BY, CHUNK)
    low, high = tl.min(tl.where(adds > 0, number, 0x7FFFFFFF)), tl.max(tl.where(adds > 0, number, 0))
    for first in range(CHUNK, length, CHUNK):
        other, other_adds = _measured(logits, listed, first, length, best, rate, limit, BY, CHUNK)
        low = tl.minimum(low, tl.min(tl.where(other_adds > 0, other, 0x7FFFFFFF)))
        high = tl.maximum(high, tl.max(tl.where(other_adds > 0, other, 0)))
    number -= low
    found, below = low * 0, least * 0
    for bit in range(31):
        width = 1 << (30 - bit)
        if width <= high - low:
            tried = found + width
            total = tl.sum(tl.where(number < tried, adds, 0))
            for first in range(CHUNK, length, CHUNK):
                other, other_adds = _measured(logits, listed, first, length, best, rate, limit, BY, CHUNK)
                total += tl.sum(tl.where(other - low < tried, other_adds, 0))
            if total < least:
                found, below = tried, total
    return low + found, below


@triton.jit
def border_kernel(
    logits, row_of, rates, top_k, top_p, farthest, best_of_blocks, records, listed, borders, stride, columns, blocks,
    COARSE: tl.constexpr, FINE: tl.constexpr, BLOCKS: tl.constexpr, CHUNK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Of a row: its best logit and the distance of its border, as bits, and the last id at that distance that stays."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    number = tl.program_id(0)
    most, share, rate = tl.load(top_k + number), tl.load(top_p + number), tl.load(rates + number)
    best = best_of_row(best_of_blocks + number * blocks, blocks, BLOCKS)
    border, last = tl.full([], _INFINITE, tl.int32), columns + number * 0
    if has_border(most, share, columns):
        record = records + number * record_size(COARSE, FINE)
        row, ids = logits + tl.load(row_of + number) * stride, listed + number.to(tl.int64) * columns
        _, _, least = listed_bins(record, most, share, columns, COARSE, FINE)
        length, below = tl.load(record + listed_place(COARSE, FINE)).to(tl.int32), least * 0
        if (most <= columns) & (least <= length):
            border, below = _smallest(row, ids, length, best, rate, border, least, "count", CHUNK)
        if share < 1:
            if most <= columns:
                least = needed_of(_listed_weight(row, ids, length, best, rate, border, CHUNK), share)
            border, below = _smallest(row, ids, length, best, rate, border, least, "weight", CHUNK)
            last, below = _smallest(row, ids, length, best, rate, border, least - below, "id", CHUNK)
    limit = tl.load(farthest + number).to(tl.int32, bitcast=True)
    tl.store(borders + number * 3, best.to(tl.int32, bitcast=True))
    tl.store(borders + number * 3 + 1, tl.minimum(border, limit))
    tl.store(borders + number * 3 + 2, tl.where(limit < border, columns, last))
