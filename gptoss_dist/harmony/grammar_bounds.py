"""Bounds of a schema's patterns and multiples, beyond which llguidance would work on them for minutes."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from gptoss_dist.harmony.grammar_pattern import expanded_size

MOST_PATTERN_ATOMS = 2_000
MOST_ATOMS = 10_000
MOST_PATTERNS = 200
LARGEST_MULTIPLE = 10_000


def is_too_large(pattern: str) -> bool:
    """Whether one pattern has more atoms than it may, once it is written out."""
    return expanded_size(pattern) > MOST_PATTERN_ATOMS


def is_too_fine(multiple: Any) -> bool:
    """Whether a `multipleOf` has more digits than can be enforced; what is no number has none."""
    return isinstance(multiple, int | float) and not isinstance(multiple, bool) and _scaled(multiple) > LARGEST_MULTIPLE


def _scaled(multiple: float) -> int:
    """The number without its decimal point: 0.25 ─► 25."""
    digits = Decimal(str(multiple)).as_tuple()
    number = int("".join(map(str, digits.digits)))
    return int(number * 10 ** max(int(digits.exponent), 0))
