"""What `time_attention.py` times: cases, layouts of pages, and the candidate settings of the kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gptoss_dist.kernels.attention_decode import DecodeSetting
from gptoss_dist.kernels.attention_prefill import PrefillSetting

COLD_BYTES = 256 << 20
"""More than any L2 cache of today's GPUs, several times."""


@dataclass(frozen=True)
class Plan:
    """What is timed."""

    decode: tuple[tuple[int, int], ...]
    """Sequences, context of each."""
    prefill: tuple[tuple[int, int], ...]
    """Sequences, tokens of each chunk; nothing before them."""
    layouts: tuple[tuple[int, bool], ...]
    """Tokens a page; whether heads come before tokens in it."""
    full: tuple[DecodeSetting, ...]
    sliding: tuple[DecodeSetting, ...]
    prefill_full: tuple[PrefillSetting, ...]
    prefill_sliding: tuple[PrefillSetting, ...]
    head_size: int = 64
    dtype: torch.dtype = torch.bfloat16
    device: str = "cuda"
    cold_bytes: int = COLD_BYTES


REAL = Plan(
    decode=((1, 1024), (1, 32768), (1, 131072), (64, 1024), (64, 8192), (256, 1024)),
    prefill=((1, 8192), (64, 1024), (1, 32768)),
    layouts=((16, False), (64, False), (64, True)),
    full=(
        DecodeSetting(64, 2, 4, 4),
        DecodeSetting(64, 2, 4, 8),
        DecodeSetting(64, 1, 3, 4),
        DecodeSetting(64, 1, 4, 4),
        DecodeSetting(64, 4, 4, 4),
        DecodeSetting(64, 4, 3, 2),
        DecodeSetting(128, 4, 3, 2),
        DecodeSetting(128, 4, 3, 3),
        DecodeSetting(128, 8, 3, 2),
    ),
    sliding=(
        DecodeSetting(128, 4, 2),
        DecodeSetting(128, 4, 1),
        DecodeSetting(128, 8, 2),
        DecodeSetting(64, 4, 3),
        DecodeSetting(64, 2, 3),
    ),
    prefill_full=(
        PrefillSetting(16, 64, 8, 3),
        PrefillSetting(16, 64, 4, 3),
        PrefillSetting(16, 128, 8, 3),
        PrefillSetting(16, 128, 8, 2),
        PrefillSetting(32, 64, 8, 3),
        PrefillSetting(32, 64, 16, 3),
        PrefillSetting(8, 64, 4, 3),
    ),
    prefill_sliding=(
        PrefillSetting(16, 64, 8, 3),
        PrefillSetting(16, 64, 8, 2),
        PrefillSetting(32, 64, 8, 3),
        PrefillSetting(32, 64, 16, 3),
        PrefillSetting(16, 32, 8, 4),
    ),
)
DRY = Plan(
    decode=((1, 40), (3, 20)),
    prefill=((2, 9),),
    layouts=((4, False), (16, True)),
    full=(DecodeSetting(16, 2, 4, 4), DecodeSetting(16, 1, 2, 1)),
    sliding=(DecodeSetting(16, 2, 2),),
    prefill_full=(PrefillSetting(4, 16, 4, 2),),
    prefill_sliding=(PrefillSetting(4, 16, 4, 2),),
    head_size=16,
    dtype=torch.float32,
    device="cpu",
    cold_bytes=1 << 14,
)
