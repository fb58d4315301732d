"""Where in a row the border of top-k or top-p may be, in Triton: bins of distances, and a list of the tokens in them.

Of each row there is a record: what the tokens in every coarse bin add up to, in every fine bin of the coarse one that
holds the border, and how many are listed. With top-k tokens count as 1, else by their weight.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from gptoss_dist.kernels.dependent_launch import let_next_start, wait_for_previous
from gptoss_dist.kernels.truncation_numbers_triton import (
    WHOLE_BITS,
    best_of_row,
    bits_of,
    distance_of,
    has_border,
    logits_of,
    needed_of,
    weight_of,
)


@triton.jit
def record_size(COARSE: tl.constexpr, FINE: tl.constexpr):
    """Numbers of a row's record."""
    return (1 << COARSE) + (1 << FINE) + 1


@triton.jit
def listed_place(COARSE: tl.constexpr, FINE: tl.constexpr):
    """Where in the record the length of the list is."""
    return (1 << COARSE) + (1 << FINE)


@triton.jit
def _bin(bits, most, share, columns, BITS: tl.constexpr):
    """The fine bin of each token, in the order of their distances; -1 for tokens without a weight.

    The last token of a nucleus has at least the (1 - top-p) / V-th part of all weights, or it and those after it would
    not come to 1 - top-p. Bins need not reach farther than that; the last one holds what is beyond.
    """
    rest = tl.maximum((1.0 - share).to(tl.float32), 1e-9)
    reach = tl.maximum(tl.log2(columns.to(tl.float32) / rest), 1.0)
    reach = tl.where(most > columns, tl.minimum(reach, WHOLE_BITS), WHOLE_BITS)
    bin = tl.minimum(bits * ((1 << BITS) / reach), (1 << BITS) - 1.0).to(tl.int32)
    return tl.where(bits <= WHOLE_BITS, bin, -1)


@triton.jit
def _first_bin(sums, least, nearer, BITS: tl.constexpr):
    """(the first bin up to which tokens add up to `least`, or the last one; what is nearer than that bin)"""
    digit = tl.arange(0, 1 << BITS)
    added = tl.load(sums + digit)
    reached = nearer + tl.cumsum(added, axis=0)
    chosen = tl.minimum(tl.sum((reached < least).to(tl.int32)), (1 << BITS) - 1)
    return chosen, nearer + tl.sum(tl.where(digit < chosen, added, 0))


@triton.jit
def _coarse_bin(record, most, share, columns, COARSE: tl.constexpr):
    """(the coarse bin that holds the border, what is nearer, what tokens have to add up to)"""
    least = most
    if most > columns:
        least = needed_of(tl.sum(tl.load(record + tl.arange(0, 1 << COARSE))), share)
    coarse, nearer = _first_bin(record, least, tl.zeros([], tl.int64), COARSE)
    return coarse, nearer, least


@triton.jit
def listed_bins(record, most, share, columns, COARSE: tl.constexpr, FINE: tl.constexpr):
    """(the first and the last fine bin of what is listed, what the list has to add up to)"""
    coarse, nearer, least = _coarse_bin(record, most, share, columns, COARSE)
    fine, nearer = _first_bin(record + (1 << COARSE), least, nearer, FINE)
    last = (coarse << FINE) + fine
    whole = (most <= columns) & (share < 1)
    return tl.where(whole, 0, last), last, least - tl.where(whole, 0, nearer)


@triton.jit
def sum_bins_kernel(
    logits, row_of, rates, top_k, top_p, best_of_blocks, records, stride, columns, blocks,
    AGAIN: tl.constexpr, COARSE: tl.constexpr, FINE: tl.constexpr, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Adds a block's tokens to the coarse bins; `AGAIN`: those of the border's coarse bin to its fine ones."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    number, block = tl.program_id(1), tl.program_id(0)
    most, share = tl.load(top_k + number), tl.load(top_p + number)
    if has_border(most, share, columns):
        record = records + number * record_size(COARSE, FINE)
        logit = logits_of(logits, tl.load(row_of + number), stride, block * COLUMNS + tl.arange(0, COLUMNS), columns)
        best = best_of_row(best_of_blocks + number * blocks, blocks, BLOCKS)
        bits = bits_of(distance_of(logit, best), tl.load(rates + number))
        bin = _bin(bits, most, share, columns, COARSE + FINE)
        if AGAIN:
            coarse, _, _ = _coarse_bin(record, most, share, columns, COARSE)
            digit, record = tl.arange(0, 1 << FINE), record + (1 << COARSE)
            bin = tl.where(bin >> FINE == coarse, bin & ((1 << FINE) - 1), -1)
        else:
            digit, bin = tl.arange(0, 1 << COARSE), bin >> FINE
        adds = tl.full(bits.shape, 1, tl.int64)
        if most > columns:
            adds = weight_of(bits)
        total = tl.sum(tl.where(bin[None, :] == digit[:, None], adds[None, :], 0), axis=1)
        tl.atomic_add(record + digit, total, mask=total > 0, sem="relaxed")


@triton.jit
def list_kernel(
    logits, row_of, rates, top_k, top_p, best_of_blocks, records, listed, stride, columns, blocks,
    COARSE: tl.constexpr, FINE: tl.constexpr, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Lists a block's tokens in the bins where borders may be."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    number, block = tl.program_id(1), tl.program_id(0)
    most, share = tl.load(top_k + number), tl.load(top_p + number)
    if has_border(most, share, columns):
        record = records + number * record_size(COARSE, FINE)
        first, last, _ = listed_bins(record, most, share, columns, COARSE, FINE)
        column = block * COLUMNS + tl.arange(0, COLUMNS)
        logit = logits_of(logits, tl.load(row_of + number), stride, column, columns)
        best = best_of_row(best_of_blocks + number * blocks, blocks, BLOCKS)
        bin = _bin(bits_of(distance_of(logit, best), tl.load(rates + number)), most, share, columns, COARSE + FINE)
        within = ((bin >= first) & (bin <= last)).to(tl.int32)
        count = tl.sum(within)
        if count > 0:
            begin = tl.atomic_add(record + listed_place(COARSE, FINE), count.to(tl.int64), sem="relaxed")
            place = listed + number.to(tl.int64) * columns + begin + tl.cumsum(within, axis=0) - 1
            tl.store(place, column, mask=within > 0)
