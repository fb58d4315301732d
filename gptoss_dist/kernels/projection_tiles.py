"""Block shapes of the projections of few tokens: the one table to tune.

`candidates_one` and `candidates_few` are what `tests/gpu/time_small.py` compares; the first of each is in use.

Bytes under way on one SM are those of a program times the programs that its registers (one token) or its shared memory
(more tokens) let stay on it: 4.2 TB/s × 1 µs / 132 SMs = 32 kB are needed at least.
"""

from __future__ import annotations

from dataclasses import dataclass

FEW_TOKENS = 16
"""Beyond so many, torch's own product."""


@dataclass(frozen=True)
class OneTile:
    """One token: all of a program's weights are on their way before the first is used."""

    rows: int
    """Weight rows of a program."""
    columns: int
    """Columns a load covers: 8 a thread, so the warps share the columns of each row."""
    warps: int


@dataclass(frozen=True)
class FewTile:
    """2 … FEW_TOKENS tokens, on tensor cores."""

    rows: int
    """Weight rows of a program, a multiple of 16."""
    slices: int
    """Pieces of the columns that are multiplied side by side, dealt over the warps."""
    columns: int
    """Columns of a slice in one step."""
    warps: int
    stages: int
    """Steps in flight, the one at work among them."""


candidates_one = (
    OneTile(2, 2048, 8),
    OneTile(4, 1024, 4),
    OneTile(2, 1024, 4),
    OneTile(4, 512, 2),
    OneTile(2, 512, 2),
    OneTile(1, 1024, 4),
    OneTile(2, 256, 1),
    OneTile(1, 256, 1),
)
candidates_few = (
    FewTile(16, 4, 64, 4, 4),
    FewTile(16, 4, 64, 4, 6),
    FewTile(16, 8, 64, 8, 4),
    FewTile(16, 4, 128, 4, 4),
    FewTile(32, 4, 64, 4, 4),
    FewTile(32, 8, 64, 8, 3),
)
