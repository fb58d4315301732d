"""MXFP4 weights laid out for multiplication on tensor cores: the same bytes in another order, and back again.

Blocks. Sixteen bytes hold the 32 values of a group. In a checkpoint value k is nibble k. Here they are four 32-bit
words (little-endian); word t holds the values k = 16·a + 4·t + 2·b + h, for a, b, h of 0 and 1: those that one thread
of an `mma.m16n8k16` feeds to the tensor core when it takes four neighbours at a time. Each half h of a word holds four
E2M1 codes (sign, exponent high and low, mantissa), one for each pair p = 2·a + b, where `bfloat16` wants them or a
rotation away from it:

    bit         15 14 13 12 11 10  9  8  7  6  5  4  3  2  1  0
    rows r      0s 2h 2l 2m 1s Dm Cs 0h 0l 0m 2s 1h 1l 1m Cl Cm
    rows r + 8  0s 2h 2l 2m 1s Dh Dl 0h 0l 0m 2s 1h 1l 1m Ds Ch

so with M = 0x81C081C0, `w & M` is two `bfloat16` at once (times 2^-126), `(w << 4) & M` the next two and
`rotate_right(w, 6) & M` the third. Four of sixteen bits are left over, which lie badly; those of rows r and r + 8 of a
tile of 16 (which the same thread holds) together make the fourth pair of both, C of row r and D of row r + 8:
`m = (w & 0x06030603) | ((w' << 2) & 0x180C180C)`, then `(m << 6) & M` and `rotate_right(m, 4) & M`. A rotation to the
right carries a sign into the other half, so the signs 2s and Ds stand in the half that is not their own.

Scales. Rows stand in tiles of 32: `[rows / 32, G, 8, 4]` instead of `[rows, G]`, where byte j of word g belongs to row
8·j + g of the tile: the four rows of two `mma.m16n8k16` that one thread holds.

Shapes stay as they were; only the order within changes. Shape legend: E experts, R rows, G groups of 32 columns,
T tokens, H hidden.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from gptoss_dist.errors import KernelError
from gptoss_dist.kernels.packed import PackedExperts

TILE_ROWS = 32
"""Rows whose scales stand together."""
LARGEST_SCALE = 128
"""Above it (weights of 12 and more) a weight times 2^126 is no finite bfloat16, and 255 is NaN."""

_OWN = ((15, 8, 7, 6), (11, 4, 3, 2), (-1, 14, 13, 12))
"""Pairs 0 to 2: where sign, exponent (high, low) and mantissa of a code stand; -1: at bit 5 of the other half."""
_SHARED = (((0, 9, 0), (1, 0, 1), (0, 1, 2), (0, 0, 3)), ((1, 1, 0), (1, 10, 1), (1, 9, 2), (0, 10, 3)))
"""Pair 3 of rows r and r + 8, sign first: (row half, bit in its word, bit of the code); the last sign as above."""
_PAIRS = {torch.bfloat16: torch.int32, torch.float16: torch.int32, torch.float32: torch.int64}
"""A number format as wide as two activations."""
_GROUPS_AT_ONCE = {"cuda": 1 << 21, "cpu": 1 << 16}


def interleave_(blocks: torch.Tensor, scales: torch.Tensor) -> None:
    """Turn contiguous blocks [E, …, G, 16] and scales [E, …, G] of a checkpoint into this layout, in place.

    Temporaries stay below 1 GB on a GPU and 20 MB on a CPU. Raises KernelError for scales that the kernels cannot
    apply, and for rows that are no multiple of 32.
    """
    _check(blocks, scales)
    if not scales.numel():
        return
    if int(scales.max()) > LARGEST_SCALE:
        raise KernelError(
            f"A scale of these MXFP4 weights is {int(scales.max())}, and the built-in kernels go to {LARGEST_SCALE} "
            "(weights below 12). kernels.experts=reference multiplies any."
        )
    for piece in _pieces(blocks):
        _interleave_(piece)
    for piece in scales.view(scales.shape[0], -1, 4, 8, scales.shape[-1]):
        piece.view(-1).copy_(piece.permute(0, 3, 2, 1).reshape(-1))


def restore(packed: PackedExperts) -> PackedExperts:
    """The same experts in the checkpoint's order, as new tensors; those already in it are returned as they are."""
    if not packed.interleaved:
        return packed
    gate_up_blocks, gate_up_scales = restored(packed.gate_up_blocks, packed.gate_up_scales)
    down_blocks, down_scales = restored(packed.down_blocks, packed.down_scales)
    return replace(
        packed,
        gate_up_blocks=gate_up_blocks,
        gate_up_scales=gate_up_scales,
        down_blocks=down_blocks,
        down_scales=down_scales,
        interleaved=False,
    )


def restored(blocks: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of interleaved blocks [E, …, G, 16] and scales [E, …, G] in the checkpoint's order."""
    _check(blocks, scales)
    plain = blocks.clone()
    for piece in _pieces(plain):
        _restore_(piece)
    tiles = scales.view(scales.shape[0], -1, scales.shape[-1], 8, 4)
    return plain, tiles.permute(0, 1, 4, 3, 2).reshape(scales.shape)


def paired(active_TH: torch.Tensor) -> torch.Tensor:
    """A copy of contiguous activations in the order of `mxfp4_unpack.by_twos`: a, t, b, h of each 32 to a, b, t, h."""
    tokens, hidden = active_TH.shape
    pairs = active_TH.view(_PAIRS[active_TH.dtype]).view(tokens, -1, 2, 4, 2)  # both h as one number: half to copy
    return pairs.transpose(3, 4).contiguous().view(active_TH.dtype).view(tokens, hidden)


def _check(blocks: torch.Tensor, scales: torch.Tensor) -> None:
    rows = scales[0].numel() // max(1, scales.shape[-1]) if scales.shape[0] else 0
    if not blocks.is_contiguous() or not scales.is_contiguous() or rows % TILE_ROWS:
        raise KernelError(
            f"MXFP4 blocks {tuple(blocks.shape)} and scales {tuple(scales.shape)} must be contiguous, with a multiple "
            f"of {TILE_ROWS} rows an expert, to be laid out for the built-in kernels."
        )


def _pieces(blocks: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Views [tiles, 2, 8·G, 16] of contiguous blocks [E, …, G, 16]: rows 0 to 7 and 8 to 15 of each tile of 16."""
    groups = blocks.shape[-2]
    tiles = blocks.view(-1, 2, 8 * groups, 16) if blocks.numel() else blocks.new_empty(0, 2, 8 * groups, 16)
    at_once = _GROUPS_AT_ONCE.get(blocks.device.type, _GROUPS_AT_ONCE["cpu"])
    return torch.split(tiles, max(1, at_once // (16 * groups)))


def _interleave_(tiles: torch.Tensor) -> None:
    """Bytes of a checkpoint [tiles, 2, n, 16] to those of this layout, in place."""
    codes = torch.stack((tiles & 15, tiles >> 4), dim=-1).view(*tiles.shape[:3], 2, 4, 2, 2)  # …, a, t, b, h
    codes = codes.permute(3, 5, 0, 1, 2, 4, 6).flatten(0, 1).int()  # pair, tile, row half, n, t, h
    half = torch.zeros(codes.shape[1:], dtype=torch.int32, device=tiles.device)
    for pair, places in enumerate(_OWN):
        for bit, place in enumerate(places):
            value = codes[pair] >> (3 - bit) & 1
            half |= value.flip(-1) << 5 if place < 0 else value << place
    for row, parts in enumerate(_SHARED):
        for word, place, bit in parts:
            value = codes[3][:, row] >> (3 - bit) & 1
            half[:, word] |= (value.flip(-1) if row == 1 and bit == 0 else value) << place
    tiles.copy_(torch.stack((half & 255, half >> 8), dim=-1).to(torch.uint8).view(tiles.shape))


def _restore_(tiles: torch.Tensor) -> None:
    """The inverse of `_interleave_`."""
    low, high = tiles.view(*tiles.shape[:3], 4, 2, 2).int().unbind(-1)
    half = low | high << 8  # tile, row half, n, t, h
    codes = torch.zeros(4, *half.shape, dtype=torch.int32, device=tiles.device)
    for pair, places in enumerate(_OWN):
        for bit, place in enumerate(places):
            value = (half.flip(-1) >> 5 if place < 0 else half >> place) & 1
            codes[pair] |= value << (3 - bit)
    for row, parts in enumerate(_SHARED):
        for word, place, bit in parts:
            value = half[:, word] >> place & 1
            codes[3][:, row] |= (value.flip(-1) if row == 1 and bit == 0 else value) << (3 - bit)
    nibbles = codes.view(2, 2, *half.shape).permute(2, 3, 4, 0, 5, 1, 6).reshape(*tiles.shape, 2)  # …, a, t, b, h
    tiles.copy_((nibbles[..., 0] | nibbles[..., 1] << 4).to(torch.uint8))
