"""What the engine's step needs of its ranks: sums over them, and what follows a sum in the same breath.

Shape legend: T tokens, H hidden, K experts per token, P = T·K routes.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch


class Routes(NamedTuple):
    """A partial that is itself a sum over routes: what the experts of this rank gave, row by row."""

    rows_PH: torch.Tensor
    index_P: torch.Tensor
    """Which of the experts here; other numbers belong to other ranks, and their rows may hold anything."""
    experts: int
    """Experts here."""


class Norm(NamedTuple):
    """What follows a sum: it is added to the residual, and the norm of that is taken."""

    residual_TH: torch.Tensor
    weight_H: torch.Tensor
    epsilon: float


class Reducer(Protocol):
    """Sums the partials of all ranks. What is to be added once, such as a bias, one rank has in its partial."""

    def reduce(self, partial_TH: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' partials, in their dtype; `partial_TH` may be overwritten."""

    def reduce_add_norm(self, partial: torch.Tensor | Routes, norm: Norm) -> torch.Tensor:
        """`residual_TH += Σ partials` in place (float32, rounded once), then its RMSNorm, [T, H].

        The norm is `norm_reference.add_norm`'s. A partial [T, H] may be overwritten; one of routes is formed and
        rounded as by `norm_reference.sum_routes`, and need not be rounded where there is one rank only.
        """
