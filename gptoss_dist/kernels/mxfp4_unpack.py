"""Triton functions that turn interleaved MXFP4 words (`mxfp4_layout`) into tensor core operands, in registers.

Bits are moved, never looked up: the three low bits of an E2M1 code, put at the foot of a float's exponent, are the
code's magnitude times a power of two (subnormals included): 2^-126 in bfloat16, 2^-14 in float16. An inline comment at
each use says who multiplies it back.

The order of what comes out is chosen so that no value changes its thread on the way to the tensor core: Triton 3.6
gives a thread four neighbours of the contracted dimension for `mma` on operands of three dimensions (`batched`), and
two for `wgmma`. `tests/unit/kernels/test_experts_compile.py` fails when the compiler decides otherwise; results stay
right then, only slower.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def two_values(word, dtype: tl.constexpr):
    """32-bit words as pairs of 16-bit floats: `[…]` to `[…, 2]`, low half first."""
    low = (word & 0xFFFF).to(tl.uint16).to(dtype, bitcast=True)
    high = (word >> 16).to(tl.uint16).to(dtype, bitcast=True)
    return tl.join(low, high)


@triton.jit
def _three_pairs(word):
    """The first three pairs of a word, each two bfloat16 times 2^-126."""
    return word & 0x81C081C0, (word << 4) & 0x81C081C0, ((word >> 6) | (word << 26)) & 0x81C081C0


@triton.jit
def _pair_values(pair, dtype: tl.constexpr):
    """Words of two bfloat16 (times 2^-126) as `[…, 2]`: bfloat16 as they are, or float16 times 2^-14."""
    if dtype == tl.bfloat16:
        return two_values(pair, tl.bfloat16)
    else:  # noqa: RET505 - Triton compiles both returns otherwise
        return two_values((pair & 0x80008000) | ((pair << 3) & 0x0E000E00), tl.float16)


@triton.jit
def _joined(first, second, third, fourth, dtype: tl.constexpr):
    """Four pairs [… t] as values [… t, 2 h, 2 b, 2 a]."""
    low = tl.join(_pair_values(first, dtype), _pair_values(second, dtype))
    return tl.join(low, tl.join(_pair_values(third, dtype), _pair_values(fourth, dtype)))


@triton.jit
def _both_rows(word, other, dtype: tl.constexpr):
    """Words of rows r and of rows r + 8, [… t] each, as values [… t, 2 h, 2 b, 2 a, 2 rows]."""
    first, second, third = _three_pairs(word)
    other_first, other_second, other_third = _three_pairs(other)
    shared = (word & 0x06030603) | ((other << 2) & 0x180C180C)
    fourth = (shared << 6) & 0x81C081C0
    other_fourth = ((shared >> 4) | (shared << 28)) & 0x81C081C0
    values = _joined(first, second, third, fourth, dtype)
    return tl.join(values, _joined(other_first, other_second, other_third, other_fourth, dtype))


@triton.jit
def values_of(word, X: tl.constexpr, Y: tl.constexpr, dtype: tl.constexpr):
    """Words [X, Y rows, 4 t] to values [X, Y, 4 t, 2 h, 2 b, 2 a]: bfloat16 times 2^-126, or float16 times 2^-14."""
    tiles = tl.permute(tl.reshape(word, (X, Y // 16, 2, 8, 4)), (0, 1, 3, 4, 2))
    word, other = tl.split(tiles)
    values = tl.permute(_both_rows(word, other, dtype), (0, 1, 7, 2, 3, 4, 5, 6))
    return tl.reshape(values, (X, Y, 4, 2, 2, 2))


@triton.jit
def values_of_rows(word, X: tl.constexpr, Y: tl.constexpr, dtype: tl.constexpr):
    """As `values_of`, for words [X rows, Y, 4 t]."""
    tiles = tl.permute(tl.reshape(word, (X // 16, 2, 8, Y, 4)), (0, 2, 3, 4, 1))
    word, other = tl.split(tiles)
    values = tl.permute(_both_rows(word, other, dtype), (0, 7, 1, 2, 3, 4, 5, 6))
    return tl.reshape(values, (X, Y, 4, 2, 2, 2))


@triton.jit
def times_scale(values, scale, dtype: tl.constexpr):
    """Values [X, Y, 4, 2, 2, 2] of `values_of` times their scale bytes [X, Y], exact, in dtype."""
    if dtype == tl.bfloat16:
        # (byte + 126) << 7 in both halves: 2^126 · 2^(byte - 127). Both factors and the product are bfloat16 numbers.
        both = two_values(scale.to(tl.uint32) * 0x00800080 + 0x3F003F00, tl.bfloat16)
        return values * both[:, :, None, :, None, None]
    factor = scale_values(scale) * 16384.0  # 2^14
    return (values.to(tl.float32) * factor[:, :, None, None, None, None]).to(dtype)


@triton.jit
def four_scales(word, X: tl.constexpr, ROWS: tl.constexpr):
    """Words [X, ROWS / 32, 8] of four scales each to scale bytes [X, ROWS], int32."""
    low = tl.join(word & 255, (word >> 8) & 255)
    high = tl.join((word >> 16) & 255, (word >> 24) & 255)
    four = tl.join(low, high)  # X, tile, g, low bit of j, high bit of j
    return tl.reshape(tl.permute(four, (0, 1, 4, 3, 2)), (X, ROWS))


@triton.jit
def scale_values(scale):
    """Scale bytes as float32: 2^(byte - 127); 0 gives 0 instead of 2^-127."""
    return (scale.to(tl.int32) << 23).to(tl.float32, bitcast=True)


@triton.jit
def by_fours(values, X: tl.constexpr, Y: tl.constexpr):
    """Values [X, Y, t, h, b, a] in the checkpoint's order: [X, Y, 32], value 16·a + 4·t + 2·b + h."""
    return tl.reshape(tl.permute(values, (0, 1, 5, 2, 4, 3)), (X, Y, 32))


@triton.jit
def by_twos(values, X: tl.constexpr, Y: tl.constexpr):
    """Values [X, Y, t, h, b, a] in the order of `paired`: [X, Y·32], value 16·a + 8·b + 2·t + h of each group."""
    return tl.reshape(tl.permute(values, (0, 1, 5, 4, 2, 3)), (X, Y * 32))


@triton.jit
def paired_place(column):
    """Where column 16·a + 4·t + 2·b + h of a group stands in the order of `by_twos`: at 16·a + 8·b + 2·t + h."""
    return (column & -15) | ((column & 2) << 2) | ((column & 12) >> 1)
