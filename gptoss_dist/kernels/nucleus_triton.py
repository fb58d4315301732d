"""The nucleus of a row without sorting it, in Triton. The reference is `nucleus_reference`: the same tokens stay.

Probabilities are at least 0, so they order as their bits do. Let x be the smallest number whose likelier tokens sum to
less than top-p: what is likelier than x stays, what is less likely goes, and of those at x the first ones stay that are
needed. x is found digit by digit from the top, three bits each (radix selection: Alabi, Blanchard, Gordon, Steinbach,
"Fast k-selection algorithms for graphics processors", JEA 17, 2012, with sums for counts): a launch sums, in every
block of columns, the tokens of each next digit, and the launch after it takes the digit from these sums. Sums are whole
numbers: the same for one row and for many. Nothing is read back.

Shape legend: K rows of probabilities, N of them with a nucleus, V vocabulary, B blocks of columns, D digits.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gptoss_dist.kernels import nucleus_reference
from gptoss_dist.kernels.blocks import blocks_of, padded_to_power

_COLUMNS = 2048
_DIGIT_BITS = 3
_DIGITS = 10
"""Of three bits: all float32 numbers of at least 0 and below 2."""
_WHOLE = tl.constexpr(float(nucleus_reference.WHOLE))


def keep_nucleus(probabilities_KV: torch.Tensor, rows_N: torch.Tensor, top_p_N: torch.Tensor) -> None:
    """See `nucleus_reference.keep_nucleus`; rows must be contiguous."""
    rows, columns, device = len(rows_N), probabilities_KV.shape[1], probabilities_KV.device
    assert probabilities_KV.dtype == torch.float32
    assert probabilities_KV.is_contiguous()
    assert rows_N.dtype == top_p_N.dtype == torch.int64
    if not rows:
        return
    blocks = blocks_of(columns, _COLUMNS)
    # Where each launch leaves what it knew and what it summed, for the next.
    known_D2N = torch.empty(_DIGITS, 2, rows, dtype=torch.int64, device=device)
    sums_DNB = torch.empty(_DIGITS, rows, blocks, 1 << _DIGIT_BITS, dtype=torch.int64, device=device)
    sizes = {"BITS": _DIGIT_BITS, "BLOCKS": padded_to_power(blocks), "COLUMNS": _COLUMNS, "num_warps": 4}
    for digit in range(_DIGITS):
        _sum_kernel[(blocks, rows)](
            probabilities_KV, rows_N, top_p_N, known_D2N[digit], known_D2N[digit - 1], sums_DNB[digit],
            sums_DNB[digit - 1], columns, rows, blocks, _DIGIT_BITS * (_DIGITS - 1 - digit), FIRST=digit == 0, **sizes,
        )  # fmt: skip
    _cut_kernel[(blocks, rows)](
        probabilities_KV, rows_N, top_p_N, known_D2N[_DIGITS - 1], sums_DNB[_DIGITS - 1], columns, rows, blocks, **sizes
    )


@triton.jit
def _parts(probability):
    """As whole numbers; 0 for what is no number."""
    return (tl.where(probability == probability, probability, 0.0) * _WHOLE).to(tl.int64)


@triton.jit
def _next_digit(known, sums, top_p, row, rows, blocks, BITS: tl.constexpr, BLOCKS: tl.constexpr):
    """(digits so far with one more, sum of what is likelier than all tokens that begin with them, that digit)."""
    digit, block = tl.arange(0, 1 << BITS), tl.arange(0, BLOCKS)
    place = (row * blocks + block[:, None]) * (1 << BITS) + digit[None, :]
    mass = tl.sum(tl.load(sums + place, mask=(block < blocks)[:, None], other=0), axis=0)
    likelier = tl.load(known + rows + row) + tl.sum(mass) - tl.cumsum(mass, axis=0)
    chosen = tl.sum((likelier >= top_p).to(tl.int32))  # likelier falls as the digit rises
    return (
        (tl.load(known + row) << BITS) + chosen,
        tl.sum(tl.where(digit == chosen, likelier, 0)),
        chosen,
    )


@triton.jit(
    do_not_specialize=["columns", "rows", "blocks", "shift"], do_not_specialize_on_alignment=["row_of", "top_p"]
)
def _sum_kernel(
    probabilities, row_of, top_p, known, known_before, sums, sums_before, columns, rows, blocks, shift,
    FIRST: tl.constexpr, BITS: tl.constexpr, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums of a block's tokens that begin with the digits so far, for each next digit."""
    row, block = tl.program_id(1), tl.program_id(0)
    digits, likelier = tl.zeros([], tl.int64), tl.zeros([], tl.int64)
    if not FIRST:
        digits, likelier, _ = _next_digit(
            known_before, sums_before, tl.load(top_p + row), row, rows, blocks, BITS, BLOCKS
        )
    if block == 0:
        tl.store(known + row, digits)
        tl.store(known + rows + row, likelier)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    place = tl.load(row_of + row) * columns + column
    probability = tl.load(probabilities + place, mask=column < columns, other=0.0)
    begins, part = probability.to(tl.int32, bitcast=True) >> shift, _parts(probability)
    first = (digits << BITS).to(tl.int32)
    digit = tl.arange(0, 1 << BITS)
    mass = tl.sum(tl.where(begins[None, :] == first + digit[:, None], part[None, :], 0), axis=1)
    tl.store(sums + (row * blocks + block) * (1 << BITS) + digit, mass)


@triton.jit(do_not_specialize=["columns", "rows", "blocks"], do_not_specialize_on_alignment=["row_of", "top_p"])
def _cut_kernel(
    probabilities, row_of, top_p, known, sums, columns, rows, blocks,
    BITS: tl.constexpr, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Zeros for a block's tokens below x, and for those at x that are not needed."""
    row, number = tl.program_id(1), tl.program_id(0)
    most = tl.load(top_p + row)
    digits, likelier, last = _next_digit(known, sums, most, row, rows, blocks, BITS, BLOCKS)
    border = digits.to(tl.int32)
    part = _parts(border.to(tl.float32, bitcast=True))
    block = tl.arange(0, BLOCKS)
    at_border = tl.load(sums + (row * blocks + block) * (1 << BITS) + last, mask=block < number, other=0)
    before = likelier + tl.sum(at_border)  # sums of the last digit hold nothing but tokens at x
    column = number * COLUMNS + tl.arange(0, COLUMNS)
    place = probabilities + tl.load(row_of + row) * columns + column
    probability = tl.load(place, mask=column < columns, other=0.0)
    bits = probability.to(tl.int32, bitcast=True)
    equal = (bits == border) & (column < columns)
    before += (tl.cumsum(equal.to(tl.int64), axis=0) - 1) * part
    goes = ((bits < border) & (probability == probability)) | (equal & (before >= most))
    tl.store(place, tl.zeros([COLUMNS], tl.float32), mask=goes & (column < columns))
