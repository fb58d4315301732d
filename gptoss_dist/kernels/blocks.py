"""Sizes of grids and blocks on the host. Triton has the same functions, which unwrap constants at some 5 µs a call."""

from __future__ import annotations


def blocks_of(count: int, block: int) -> int:
    """Blocks of `block` that cover `count`."""
    return -(-count // block)


def padded_to_power(count: int) -> int:
    """The least power of two that is at least `count`, and 1 for none."""
    return 1 << max(count - 1, 0).bit_length()
