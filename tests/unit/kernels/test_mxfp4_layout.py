"""The bits of a word, the rows of a scale tile, and the way back."""

from __future__ import annotations

import time

import pytest
import torch

from gptoss_dist.errors import KernelError
from gptoss_dist.kernels import experts_reference
from gptoss_dist.kernels.mxfp4 import MAGNITUDES
from gptoss_dist.kernels.mxfp4_layout import interleave_, restore, restored
from gptoss_dist.kernels.packed import PackedExperts


@pytest.fixture
def generator():
    seed = time.time_ns() % 2**31
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


def some_bytes(high, *shape, generator):
    return torch.randint(0, high, shape, dtype=torch.uint8, generator=generator)


def laid_out(blocks, scales):
    blocks, scales = blocks.clone(), scales.clone()
    interleave_(blocks, scales)
    return blocks, scales


def test_what_is_laid_out_comes_back(generator):
    for shape in ((3, 2, 64, 5), (2, 96, 3), (1, 32, 1)):
        blocks, scales = some_bytes(256, *shape, 16, generator=generator), some_bytes(129, *shape, generator=generator)
        new_blocks, new_scales = laid_out(blocks, scales)
        assert new_blocks.shape == blocks.shape
        assert not torch.equal(new_blocks, blocks)
        back_blocks, back_scales = restored(new_blocks, new_scales)
        assert torch.equal(back_blocks, blocks)
        assert torch.equal(back_scales, scales)


def test_more_groups_than_one_piece_come_back(generator):
    # 4 tiles of 16 × 2,049 groups: pieces of one tile each
    blocks = some_bytes(256, 2, 32, 2049, 16, generator=generator)
    scales = some_bytes(129, 2, 32, 2049, generator=generator)
    assert torch.equal(restored(*laid_out(blocks, scales))[0], blocks)


def rotated_right(word, by):
    return (word >> by | word << 32 - by) & 0xFFFFFFFF


def unpacked(word, other):
    """The four pairs of a row's word and of that of the row 8 below, as the kernels take them out."""
    shared = word & 0x06030603 | other << 2 & 0x180C180C
    fourth = shared << 6, rotated_right(shared, 4)
    return [[one, one << 4, rotated_right(one, 6), last] for one, last in zip((word, other), fourth, strict=True)]


@pytest.mark.parametrize("row", [0, 3, 8, 15, 23, 31])
@pytest.mark.parametrize("place", range(32))
def test_a_value_stands_where_the_tensor_core_wants_it(place, row):
    # value 16·a + 4·t + 2·b + h: word t, half h, pair 2·a + b; all other values of both rows stay zero
    a, t, b, h = place >> 4, place >> 2 & 3, place >> 1 & 1, place & 1
    upper, half = row & ~8, row >> 3 & 1
    for code in range(16):
        blocks = torch.zeros(1, 32, 1, 16, dtype=torch.uint8)
        blocks[0, row, 0, place // 2] = code << 4 if place % 2 else code
        interleave_(blocks, torch.zeros(1, 32, 1, dtype=torch.uint8))
        words = blocks.view(torch.int32).view(32, 4)
        found = [unpacked(*(int(words[one, at]) & 0xFFFFFFFF for one in (upper, upper + 8))) for at in range(4)]
        bits = torch.tensor(found) & 0x81C081C0  # word, row half, pair
        halves = torch.stack((bits & 0xFFFF, bits >> 16), dim=-1).to(torch.int32).to(torch.uint16)
        values = halves.view(torch.bfloat16).double() * 2.0**126
        wanted = torch.zeros(4, 2, 4, 2, dtype=torch.float64)
        wanted[t, half, 2 * a + b, h] = (-1) ** (code >> 3) * MAGNITUDES[code & 7]
        assert torch.equal(values, wanted)


def test_byte_j_of_word_g_is_the_scale_of_row_8j_plus_g():
    row = torch.arange(64, dtype=torch.uint8)
    scales = row[None, :, None].repeat(1, 1, 3)
    scales[..., 1] += 64
    interleave_(torch.zeros(1, 64, 3, 16, dtype=torch.uint8), scales)
    tiles = scales.view(2, 3, 8, 4)
    for tile in range(2):
        for g in range(8):
            for j in range(4):
                assert tiles[tile, :, g, j].tolist() == [32 * tile + 8 * j + g + extra for extra in (0, 64, 0)]


def test_scales_that_no_bfloat16_reaches_are_refused():
    blocks, scales = torch.zeros(1, 32, 1, 16, dtype=torch.uint8), torch.full((1, 32, 1), 129, dtype=torch.uint8)
    with pytest.raises(KernelError, match="is 129, and the built-in kernels go to 128"):
        interleave_(blocks, scales)


@pytest.mark.parametrize("rows", [16, 33])
def test_rows_in_no_whole_tiles_are_refused(rows):
    with pytest.raises(KernelError, match="a multiple of 32 rows"):
        interleave_(torch.zeros(1, rows, 1, 16, dtype=torch.uint8), torch.zeros(1, rows, 1, dtype=torch.uint8))


def test_strided_weights_are_refused():
    with pytest.raises(KernelError, match="contiguous"):
        interleave_(torch.zeros(1, 32, 2, 32, dtype=torch.uint8)[..., :16], torch.zeros(1, 32, 2, dtype=torch.uint8))


def test_no_experts_are_laid_out_too():
    interleave_(torch.zeros(0, 32, 1, 16, dtype=torch.uint8), torch.zeros(0, 32, 1, dtype=torch.uint8))


def test_the_reference_reads_both_orders(generator):
    gate_up = some_bytes(256, 3, 2, 64, 2, 16, generator=generator), some_bytes(124, 3, 2, 64, 2, generator=generator)
    down = some_bytes(256, 3, 64, 2, 16, generator=generator), some_bytes(124, 3, 64, 2, generator=generator)
    biases = torch.randn(3, 2, 64, generator=generator), torch.randn(3, 64, generator=generator)
    plain = PackedExperts(*gate_up, biases[0], *down, biases[1], 1.702, 7.0)
    other = PackedExperts(*laid_out(*gate_up), biases[0], *laid_out(*down), biases[1], 1.702, 7.0, interleaved=True)
    assert restore(plain) is plain
    hidden, weight = torch.randn(4, 64, generator=generator), torch.rand(4, 2, generator=generator)
    index = torch.randint(0, 3, (4, 2), generator=generator)
    found = experts_reference.experts_forward(hidden, index, weight, other)
    assert torch.equal(found, experts_reference.experts_forward(hidden, index, weight, plain))


def test_a_code_times_a_scale_is_exact_in_bfloat16():
    # what `times_scale` multiplies: a code's bits, worth 2^-126 too little, and (byte + 126) << 7, worth that too much
    code, byte = torch.arange(16)[:, None], torch.arange(129)[None, :]
    bits = (code & 8) << 12 | (code & 7) << 6
    first = bits.to(torch.int32).to(torch.uint16).view(torch.bfloat16)
    second = (byte * 0x80 + 0x3F00).to(torch.int32).to(torch.uint16).view(torch.bfloat16)
    assert torch.isfinite(second).all()
    sign = torch.where(code >= 8, -1.0, 1.0).double()
    wanted = sign * torch.tensor(MAGNITUDES, dtype=torch.float64)[code & 7] * torch.exp2(byte.double() - 127)
    assert torch.equal((first.float() * second.float()).to(torch.bfloat16).double(), wanted)
