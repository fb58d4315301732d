from __future__ import annotations

import math

import pytest
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from gptoss_dist.errors import CheckpointError
from gptoss_dist.kernels import mxfp4
from gptoss_dist.kernels.mxfp4 import dequantize, quantize


def slow_nibble(code: int) -> float:
    """E2M1 by the letter of the specification: sign, two exponent bits with bias 1, one mantissa bit."""
    sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
    magnitude = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    return -magnitude if sign else magnitude


def slow_decode(block: list[int], scale: int) -> list[float]:
    """One group: 16 bytes and a scale byte into 32 values."""
    factor = math.nan if scale == 255 else 2.0 ** (scale - 127)
    return [slow_nibble(nibble) * factor for byte in block for nibble in (byte & 15, byte >> 4)]


def every_byte_under_every_scale() -> tuple[torch.Tensor, torch.Tensor]:
    """All 256 bytes (16 blocks) with all 256 scales: blocks [256, 16, 16], scales [256, 16]."""
    blocks = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(256, 16, 16)
    scales = torch.arange(256, dtype=torch.uint8).reshape(256, 1).expand(256, 16)
    return blocks, scales


def test_every_byte_under_every_scale_is_what_the_specification_says() -> None:
    blocks, scales = every_byte_under_every_scale()
    slow = [[slow_decode(block, int(scale[0])) for block in blocks[0].tolist()] for scale in scales]
    expected = torch.tensor(slow, dtype=torch.float64).flatten(1)
    assert torch.equal(dequantize(blocks, scales, torch.float64).nan_to_num(7e77), expected.nan_to_num(7e77))
    narrow = dequantize(blocks, scales, torch.float32)
    assert torch.equal(narrow.nan_to_num(7.0), expected.float().nan_to_num(7.0))
    assert torch.equal(dequantize(blocks, scales).nan_to_num(7.0), expected.bfloat16().nan_to_num(7.0))


def test_signed_zeros_keep_their_sign() -> None:
    block = torch.full((1, 16), 0x80, dtype=torch.uint8)
    values = dequantize(block, torch.tensor([127], dtype=torch.uint8), torch.float32)
    assert torch.signbit(values).tolist() == [False, True] * 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_agrees_with_transformers_up_to_its_transpose(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 40, 5, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(90, 150, (3, 40, 5), dtype=torch.uint8, generator=generator)
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=dtype)
    assert torch.equal(dequantize(blocks, scales, dtype).transpose(1, 2), theirs)


def test_large_tensors_are_decoded_in_pieces_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (2, 7, 3, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(90, 150, (2, 7, 3), dtype=torch.uint8, generator=generator)
    whole = dequantize(blocks, scales)
    monkeypatch.setitem(mxfp4._GROUPS_AT_ONCE, "cpu", 4)
    assert torch.equal(dequantize(blocks, scales), whole)


def test_what_it_can_represent_survives_packing_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (2, 64, 6, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(2, 252, (2, 64, 6), dtype=torch.uint8, generator=generator)
    weight = dequantize(blocks, scales, torch.float32)
    assert torch.equal(dequantize(*quantize(weight), torch.float32), weight)


def slow_quantize(values: list[float]) -> tuple[list[int], int]:
    """One group by the letter of section 6.3, by trying all codes; ties go to the even one."""
    largest = max(abs(value) for value in values)
    exponent = max(math.floor(math.log2(largest)) - 2, -127) if largest else -127
    codes = []
    for value in values:
        target = abs(value) / 2.0**exponent
        code = min(range(8), key=lambda c: (abs(slow_nibble(c) - target), c % 2))
        codes.append(code + (8 if math.copysign(1, value) < 0 else 0))
    return codes, exponent + 127


def test_rounding_is_that_of_a_slow_search_ties_included() -> None:
    generator = torch.Generator().manual_seed(1)
    random = torch.randn(50, 32, generator=generator) * torch.exp2(torch.randint(-9, 9, (50, 1), generator=generator))
    middles = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0])
    ties = torch.cat([middles, -middles, torch.nextafter(middles, torch.tensor(0.0)), middles * 0]).reshape(1, 32)
    weight = torch.cat([random, ties, torch.zeros(1, 32)])
    blocks, scales = quantize(weight)
    for row, block, scale in zip(weight.tolist(), blocks[:, 0].tolist(), scales[:, 0].tolist(), strict=True):
        codes, exponent = slow_quantize(row)
        assert scale == exponent
        assert [nibble for byte in block for nibble in (byte & 15, byte >> 4)] == codes


def test_shapes_of_packing() -> None:
    blocks, scales = quantize(torch.ones(2, 5, 96, dtype=torch.bfloat16))
    assert blocks.shape == (2, 5, 3, 16)
    assert scales.shape == (2, 5, 3)
    assert blocks.dtype == scales.dtype == torch.uint8


def test_impossible_input_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no multiple"):
        quantize(torch.ones(2, 33))
    with pytest.raises(CheckpointError, match="not finite"):
        quantize(torch.full((1, 32), torch.inf))
    with pytest.raises(CheckpointError, match="do not belong together"):
        dequantize(torch.zeros(2, 3, 16, dtype=torch.uint8), torch.zeros(2, 4, dtype=torch.uint8))
    with pytest.raises(CheckpointError, match="uint8"):
        dequantize(torch.zeros(2, 3, 16), torch.zeros(2, 3, dtype=torch.uint8))
