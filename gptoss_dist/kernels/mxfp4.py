"""MXFP4 in plain torch: the reference for every packed kernel, and the maker of small packed checkpoints.

OCP Microscaling Formats (MX) specification v1.0: a group of 32 values shares one power-of-two scale (E8M0: an exponent
with bias 127; 255 means NaN), each value is an E2M1 float of 4 bits (sign, two exponent bits, one mantissa bit). Two
values share a byte, the even one in the low nibble.

Shape legend: K the quantised (last) dimension, G = K / 32 groups; `...` any leading dimensions.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from gptoss_dist.errors import CheckpointError
from gptoss_dist.shapes import GROUP

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The eight magnitudes of E2M1; bit 3 of a code is the sign."""

_BIAS = 127
_NAN_SCALE = 255
_LARGEST_EXPONENT = 2  # 6.0 = 1.5 * 2^2
_GROUPS_AT_ONCE = {"cuda": 1 << 22, "cpu": 1 << 18}
_PAIR = {2: torch.int32, 4: torch.int64, 8: torch.complex128}
"""A type as wide as two values, by the bytes of one."""


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack `weight [..., K]` into blocks `[..., G, 16]` and scales `[..., G]`, both uint8.

    The conversion of the specification (section 6.3): the scale's exponent is that of the largest magnitude of the
    group, less two; values round to the nearest, ties to even, and saturate at 6. A weight that MXFP4 can represent
    comes back exactly. Raises CheckpointError if K is no multiple of 32 or a value is not finite.
    """
    if weight.shape[-1] % GROUP:
        raise CheckpointError(
            f"MXFP4 packs groups of {GROUP}: the last dimension of {tuple(weight.shape)} is no multiple of it."
        )
    values = weight.float().reshape(*weight.shape[:-1], -1, GROUP)
    if not bool(torch.isfinite(values).all()):
        raise CheckpointError(f"A weight of shape {tuple(weight.shape)} is not finite everywhere, and MXFP4 always is.")
    largest = values.abs().amax(dim=-1, keepdim=True)
    # frexp gives mantissas in [0.5, 1): floor(log2(x)) is its exponent less one, exactly.
    exponent = torch.frexp(largest).exponent - 1 - _LARGEST_EXPONENT
    exponent = torch.where(largest > 0, exponent, -_BIAS).clamp(-_BIAS, _NAN_SCALE - 1 - _BIAS)
    # Doubles: 2^127 and 2^-127 are both ordinary numbers there, and the division is exact.
    codes = _nearest_code(torch.ldexp(values.double(), -exponent.double()))
    blocks = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return blocks, (exponent + _BIAS).squeeze(-1).to(torch.uint8)


def _nearest_code(values: torch.Tensor) -> torch.Tensor:
    """E2M1 codes (uint8, 0 to 15) nearest to scaled values; ties go to the even code."""
    middles = torch.tensor([(low + high) / 2 for low, high in pairwise(MAGNITUDES)], dtype=values.dtype)
    # A value equal to middle i falls to code i; where i is odd it must rise to i + 1, so that bound moves down a bit.
    middles[1::2] = torch.nextafter(middles[1::2], torch.zeros_like(middles[1::2]))
    codes = torch.bucketize(values.abs(), middles.to(values.device)).to(torch.uint8)
    return codes | (torch.signbit(values).to(torch.uint8) << 3)


def dequantize(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Unpack blocks `[..., G, 16]` and scales `[..., G]` into `[..., K]` of `dtype`.

    Exact wherever `dtype` can represent the product; a scale of 255 gives NaN. Works through the leading dimensions in
    pieces, so that its temporaries stay below 100 MB on a CPU and 1 GB on a GPU. Raises CheckpointError if the two do
    not belong together.
    """
    if blocks.dtype != torch.uint8 or scales.dtype != torch.uint8:
        raise CheckpointError(f"MXFP4 blocks and scales are uint8, not {blocks.dtype} and {scales.dtype}.")
    if blocks.shape != (*scales.shape, GROUP // 2):
        raise CheckpointError(
            f"MXFP4 blocks {tuple(blocks.shape)} and scales {tuple(scales.shape)} do not belong together: "
            f"each scale goes with one block of {GROUP // 2} bytes."
        )
    # Powers of two and E2M1 values are exact in every format but float16, whose exponents do not reach.
    wide = torch.float32 if dtype == torch.float16 else dtype
    pairs = _byte_values(wide, blocks.device)
    factors = _scale_values(wide, scales.device)
    weight = torch.empty((*scales.shape, GROUP), dtype=dtype, device=blocks.device)
    at_once = _GROUPS_AT_ONCE.get(blocks.device.type, _GROUPS_AT_ONCE["cpu"])
    pieces = zip(
        torch.split(weight.view(-1, GROUP), at_once),
        torch.split(blocks.reshape(-1, GROUP // 2), at_once),
        torch.split(scales.reshape(-1, 1), at_once),
        strict=True,
    )
    for weight_piece, block_piece, scale_piece in pieces:
        values = weight_piece if dtype == wide else torch.empty_like(weight_piece, dtype=wide)
        # Two values looked up as one number, in place: a third of the time of indexing on a CPU.
        torch.index_select(pairs, 0, block_piece.flatten().int(), out=values.view(pairs.dtype).view(-1))
        values.mul_(factors.index_select(0, scale_piece.flatten().int()).unsqueeze(-1))
        if values is not weight_piece:
            weight_piece.copy_(values)
    return weight.flatten(-2)


def _byte_values(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The two values of each byte, low nibble first, in one number: `[256]`."""
    nibbles = torch.tensor([*MAGNITUDES, *(-value for value in MAGNITUDES)], dtype=dtype, device=device)
    byte = torch.arange(256, device=device)
    return torch.stack([nibbles[byte & 15], nibbles[byte >> 4]], dim=-1).view(_PAIR[dtype.itemsize]).squeeze(-1)


def _scale_values(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The factor of each scale byte: `[256]`, 2^(byte - 127), NaN for 255."""
    exponents = torch.arange(256, dtype=torch.float64) - _BIAS
    factors = torch.exp2(exponents)
    factors[_NAN_SCALE] = torch.nan
    return factors.to(device=device, dtype=dtype)
