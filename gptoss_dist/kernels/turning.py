"""What becomes of the rows of a query-key-value projection: by what they are turned, and where they are kept.

Shape legend: T tokens, F = D/2 angles, K key-value heads of this rank, D head size, P pages, B tokens a page.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Heads(NamedTuple):
    """Of this rank."""

    query: int
    key_value: int
    size: int

    @property
    def rows(self) -> int:
        """Heads of queries, then of keys, then of values: those of a row of the projection."""
        return self.query + 2 * self.key_value


class Turning(NamedTuple):
    """Of one layer in one step; see `rotary_reference.rotate_and_store`."""

    cosine_TF: torch.Tensor
    sine_TF: torch.Tensor
    slot_T: torch.Tensor
    """page · B + place; −1 for a padding row, which is kept nowhere."""
    key_PBKD: torch.Tensor
    value_PBKD: torch.Tensor
    heads: Heads
