"""What happens to the logits of careful rows before a token is drawn, on the rank that decides.

    penalties ─► biases ─► constraints ─► truncation          each for those rows that ask for it, all of them at once

What the rows ask for is on the device as long as they stay the same; a step sends nothing but masks of constraints.
Shape legend: L careful rows of a step, C of them that are constrained, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gptoss_dist.engine.bias import Bias, add_bias, bias_of
from gptoss_dist.engine.constraints import Constraints
from gptoss_dist.engine.penalties import Penalties, Said
from gptoss_dist.engine.request import Request, Row
from gptoss_dist.engine.staging import Staging
from gptoss_dist.engine.truncation import Truncation, truncate, truncation_of


@dataclass(frozen=True)
class Changes:
    """What the careful rows of a step ask for; None for what none of them does."""

    penalties: Penalties | None
    bias: Bias | None
    constrained: tuple[Request, ...]
    constrained_C: torch.Tensor
    """int64: which of L."""
    truncation: Truncation | None


class Changer:
    """Makes and applies them, and keeps what was said and where constraints stand."""

    def __init__(self, staging: Staging, device: torch.device) -> None:
        """No request is known yet."""
        self._staging = staging
        self._said = Said(staging, device)
        self._constraints = Constraints(device)

    def changes(self, rows: Sequence[Row], vocabulary: int) -> Changes:
        """Those of the careful rows of a step, in their order."""
        samplings = [row.request.sampling for row in rows]
        constrained = [number for number, row in enumerate(rows) if row.request.constraint is not None]
        [constrained_C] = self._staging.send([(torch.int64, constrained)])
        return Changes(
            self._said.penalties(rows, vocabulary),
            bias_of(samplings, vocabulary, self._staging),
            tuple(rows[number].request for number in constrained),
            constrained_C,
            truncation_of(samplings, vocabulary, self._staging),
        )

    def change(self, logits_LV: torch.Tensor, changes: Changes) -> torch.Tensor | None:
        """Change the logits where they are; bool [L]: rows whose constraint allows nothing, None if there are none."""
        blocked_L = None
        if changes.penalties is not None:
            self._said.penalise(logits_LV, changes.penalties)
        if changes.bias is not None:
            add_bias(logits_LV, changes.bias)
        if changes.constrained:
            blocked_L = self._mask(logits_LV, changes)
        if changes.truncation is not None:
            truncate(logits_LV, changes.truncation)
        return blocked_L

    def count(self, tokens_L: torch.Tensor, changes: Changes) -> None:
        """The tokens that were chosen: penalties look at them in the next step."""
        if changes.penalties is not None:
            self._said.count(changes.penalties, tokens_L)

    def accept(self, request: Request, token: int) -> None:
        """Tell a constraint which token came."""
        self._constraints.accept(request, token)

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        self._constraints.forget(request_id)
        self._said.forget(request_id)

    def _mask(self, logits_LV: torch.Tensor, changes: Changes) -> torch.Tensor:
        allowed_CV = self._constraints.masks(changes.constrained, logits_LV.shape[1])
        rows_C = changes.constrained_C
        masked_CV = logits_LV.index_select(0, rows_C).masked_fill_(~allowed_CV, -torch.inf)
        logits_LV.index_copy_(0, rows_C, masked_CV)
        blocked_L = torch.zeros(logits_LV.shape[0], dtype=torch.bool, device=logits_LV.device)
        return blocked_L.index_copy_(0, rows_C, ~allowed_CV.any(dim=1))
