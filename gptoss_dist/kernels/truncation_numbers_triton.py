"""What `truncation_reference` computes of each token, in Triton: the same numbers, to the last bit.

Kernels that call this are launched with `EXACT`.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from gptoss_dist.kernels import truncation_reference

EXACT = {"enable_fp_fusion": False}
"""Of a launch: a product is rounded before something is added to it, as in the reference."""
WHOLE_BITS = tl.constexpr(truncation_reference.WHOLE_BITS)
_MOST_BITS = tl.constexpr(truncation_reference.MOST_BITS)
_FRACTIONS = tl.constexpr(1 << truncation_reference.FRACTION_BITS)
_BEYOND_FRACTION = tl.constexpr(truncation_reference.WHOLE_BITS - truncation_reference.FRACTION_BITS)
_P0, _P1, _P2, _P3, _P4, _P5 = (tl.constexpr(number) for number in truncation_reference.POWER)
_ROUNDING, _ROUNDING_AS_BITS = tl.constexpr(1.5 * 2**23), tl.constexpr(0x4B400000)
"""A small float32 number that is added to this loses its fraction, and is in the last of its bits."""


@triton.jit
def logits_of(logits, row, stride, column, columns):
    """Some of a row, in float32."""
    place = logits + row * stride + column
    return tl.load(place, mask=column < columns, other=-float("inf")).to(tl.float32)


@triton.jit
def best_of_row(best_of_blocks, blocks, BLOCKS: tl.constexpr):
    """The best logit."""
    block = tl.arange(0, BLOCKS)
    return tl.max(tl.load(best_of_blocks + block, mask=block < blocks, other=-float("inf")))


@triton.jit
def distance_of(logit, best):
    """See `truncation_reference.distances`."""
    return tl.where(logit > -float("inf"), tl.where(logit == best, 0.0, best - logit), float("inf"))


@triton.jit
def bits_of(distance, rate):
    """By how many powers of two a token is less likely than the best one; up to `WHOLE_BITS` it has a weight."""
    return tl.minimum(distance * rate, _MOST_BITS)


@triton.jit
def weight_of(bits):
    """See `truncation_reference.weights`."""
    rounded = bits + _ROUNDING
    rest = bits - (rounded - _ROUNDING)
    power = (((((_P5 * rest + _P4) * rest + _P3) * rest + _P2) * rest + _P1) * rest + _P0) * _FRACTIONS
    whole = rounded.to(tl.int32, bitcast=True) - _ROUNDING_AS_BITS
    return (power.to(tl.int32).to(tl.int64) << _BEYOND_FRACTION) >> whole.to(tl.int64)


@triton.jit
def needed_of(weight, share):
    """What a nucleus adds up to at least."""
    return tl.ceil(weight.to(tl.float64) * share).to(tl.int64)


@triton.jit
def has_border(most, share, columns):
    """Whether top-k or top-p say something about a row."""
    return (most <= columns) | (share < 1)
