"""The constraints of the requests under way, on the rank that decides: where each stands, and what it allows.

A constraint that fails ends its request as one that allows nothing does, with a line in the log: an error that the
other ranks do not see would leave them waiting for this one.

Shape legend: C constrained rows of a step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from gptoss_dist.engine.request import ConstraintState, Request
from gptoss_dist.errors import ConfigError, GptOssDistError
from gptoss_dist.log import get_logger

logger = get_logger(__name__)

T = TypeVar("T")


class Constraints:
    """Told which tokens came, asked which may come."""

    def __init__(self, device: torch.device) -> None:
        """No request is constrained yet. `device`: where masks are needed."""
        self._device = device
        self._states: dict[str, ConstraintState] = {}
        self._failed: set[str] = set()

    def masks(self, requests: Sequence[Request], vocabulary: int) -> torch.Tensor:
        """Which tokens each of these may say next: bool [C, V] on the device; none where a constraint failed."""
        allowed = [self._allowed(request, vocabulary) for request in requests]
        on_gpu = self._device.type == "cuda"
        host_CV = torch.empty(len(requests), vocabulary, dtype=torch.bool, pin_memory=on_gpu)
        torch.stack(allowed, out=host_CV)
        return host_CV.to(self._device, non_blocking=True)

    def accept(self, request: Request, token: int) -> None:
        """The token that came next; of a request that is not constrained, nothing happens."""
        state = self._states.get(request.id)
        if state is not None:
            self._attempt(request, lambda: state.accept(token))

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        self._states.pop(request_id, None)
        self._failed.discard(request_id)

    def _allowed(self, request: Request, vocabulary: int) -> torch.Tensor:
        """On the host."""
        found = self._attempt(request, lambda: self._ask(request, vocabulary))
        return torch.zeros(vocabulary, dtype=torch.bool) if found is None else found

    def _ask(self, request: Request, vocabulary: int) -> torch.Tensor:
        assert request.constraint is not None, "only constrained requests are asked"
        if request.id not in self._states:
            self._states[request.id] = request.constraint.start(request.prompt)
        allowed_V = self._states[request.id].allowed()
        if allowed_V is None:
            return torch.ones(vocabulary, dtype=torch.bool)
        if allowed_V.shape != (vocabulary,) or allowed_V.dtype != torch.bool:
            raise ConfigError(
                f"its constraint gives {allowed_V.dtype} of shape {tuple(allowed_V.shape)}; torch.bool of shape "
                f"({vocabulary},) is needed."
            )
        return allowed_V.cpu()

    def _attempt(self, request: Request, act: Callable[[], T]) -> T | None:
        """What `act` finds; None if the constraint has failed, now or before."""
        if request.id in self._failed:
            return None
        try:
            return act()
        except GptOssDistError as error:
            logger.error("request %s ends, its constraint failed: %s", request.id, error)
            self._failed.add(request.id)
            return None
