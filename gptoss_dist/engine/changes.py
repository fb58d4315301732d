"""What happens to the logits of careful rows before a token is drawn, on the rank that decides.

    penalties ─► biases ─► constraints ─► truncation          each for those rows that ask for it, all of them at once

What the rows ask for is on the device as long as they stay the same; a step sends nothing but masks of constraints. The
model's logits stay as they are: the first three change a copy in float32, and a truncation makes one.
Shape legend: R rows of logits, L careful rows of a step, C of them that are constrained, V vocabulary.
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
from gptoss_dist.engine.truncation import cuts_of, truncate_on
from gptoss_dist.kernels.truncation_reference import Cuts


@dataclass(frozen=True)
class Changes:
    """What the careful rows of a step ask for; None for what none of them does."""

    penalties: Penalties | None
    bias: Bias | None
    constrained: tuple[Request, ...]
    constrained_C: torch.Tensor
    """int64: which of L."""
    cuts: Cuts | None
    all_L: torch.Tensor
    """int64: 0, 1, … L - 1."""

    @property
    def alters(self) -> bool:
        """Whether logits get other values before some are left out."""
        return self.penalties is not None or self.bias is not None or bool(self.constrained)


class Changer:
    """Makes and applies them, and keeps what was said and where constraints stand."""

    def __init__(self, staging: Staging, device: torch.device) -> None:
        """No request is known yet."""
        self._staging = staging
        self._truncate = truncate_on(device)
        self._said = Said(staging, device)
        self._constraints = Constraints(device)

    def changes(self, rows: Sequence[Row], vocabulary: int) -> Changes:
        """Those of the careful rows of a step, in their order."""
        samplings = [row.request.sampling for row in rows]
        constrained = [number for number, row in enumerate(rows) if row.request.constraint is not None]
        constrained_C, all_L = self._staging.send([(torch.int64, constrained), (torch.int64, range(len(rows)))])
        return Changes(
            self._said.penalties(rows, vocabulary),
            bias_of(samplings, vocabulary, self._staging),
            tuple(rows[number].request for number in constrained),
            constrained_C,
            cuts_of(samplings, vocabulary, self._staging),
            all_L,
        )

    def change(
        self, logits_RV: torch.Tensor, rows_L: torch.Tensor, changes: Changes
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The logits [L, V] of some rows, changed; bool [L]: whose constraint allows nothing, None without any."""
        blocked_L = None
        if changes.alters:
            logits_RV, rows_L = logits_RV.index_select(0, rows_L).float(), changes.all_L
            if changes.penalties is not None:
                self._said.penalise(logits_RV, changes.penalties)
            if changes.bias is not None:
                add_bias(logits_RV, changes.bias)
            if changes.constrained:
                blocked_L = self._mask(logits_RV, changes)
        if changes.cuts is not None:
            return self._truncate(logits_RV, rows_L, changes.cuts), blocked_L
        return logits_RV if changes.alters else logits_RV.index_select(0, rows_L), blocked_L

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
