"""What a GPU can do at most: measured or published numbers by its name. No number is made up for a GPU not listed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

ReduceTimes = tuple[tuple[int, float], ...]
"""Pairs of tokens and microseconds, both rising."""


@dataclass(frozen=True)
class Ceiling:
    """The ceilings of one kind of GPU; None where nobody has measured."""

    pattern: str
    """A regular expression that the name which CUDA gives the GPU holds."""
    read_bytes_per_s: float
    flops: float | None
    """Dense bfloat16 matrix products, operations a second."""
    all_reduce_us: Mapping[int, ReduceTimes] = field(default_factory=dict)
    """By number of ranks: time of one all-reduce of so many rows of 2880 bfloat16 values inside a CUDA graph."""
    source: str = ""
    name: str = ""
    """Its short name, for a plan made without the GPU."""
    memory_bytes: int = 0
    """What CUDA says it has."""

    def all_reduce_s(self, ranks: int, tokens: int) -> float | None:
        """Seconds of one all-reduce, between measured points by a straight line; None if it was not measured."""
        points = self.all_reduce_us.get(ranks)
        if points is None or tokens > points[-1][0]:
            return None
        for (few, fast), (many, slow) in pairwise(points):
            if tokens <= many:
                share = max(0, tokens - few) / (many - few)
                return (fast + share * (slow - fast)) * 1e-6
        return None


CEILINGS = (
    Ceiling(
        pattern=r"\bH200\b(?!.*NVL)",
        read_bytes_per_s=4.58e12,
        flops=790e12,
        all_reduce_us={
            2: ((1, 6.2), (8, 6.7), (32, 7.7), (128, 11.1), (512, 16.0), (4096, 78.0)),
            4: ((1, 7.0), (8, 8.2), (32, 9.0), (128, 15.2), (512, 21.0), (4096, 122.0)),
        },
        source="measured on H200 SXM: reads alone, bf16 product of random data, all-reduce over symmetric memory "
        "(one-shot to 128 tokens, two-shot above), torch 2.11.0, CUDA 13.0",
        name="H200",
        memory_bytes=139 << 30,
    ),
    Ceiling(
        pattern=r"\bH100\b.*\bHBM3\b",
        read_bytes_per_s=3.0e12,
        flops=773e12,
        source="measured on H100 SXM: reads alone, bf16 product of random data, torch 2.11.0, CUDA 13.0 (all-reduce "
        "not measured)",
        name="H100",
        memory_bytes=78 << 30,
    ),
)
"""Every GPU with known ceilings."""


def ceiling_of(name: str | None) -> Ceiling | None:
    """The ceilings of the GPU that CUDA calls `name`; None for one not listed, and for a CPU (None)."""
    if name is None:
        return None
    return next((one for one in CEILINGS if re.search(one.pattern, name)), None)


def ceiling_named(name: str) -> Ceiling | None:
    """The ceilings of the GPU with this short name, in any case of letters."""
    return next((one for one in CEILINGS if one.name.lower() == name.lower()), None)
