"""Room for the requests that have no token yet: those that are being prepared, and those that the engine has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gptoss_dist.server.api_error import ApiError

_PER_SECOND = 64
"""Requests that are taken up meanwhile, as clients are told when to come back."""


@dataclass
class Room:
    """For so many requests that are being prepared."""

    count: int


class WaitingRoom:
    """At most `most` requests; for the event loop only."""

    def __init__(self, most: int) -> None:
        """Empty."""
        self._most = most
        self._preparing = 0
        self._waiting: set[str] = set()

    @property
    def preparing(self) -> int:
        """Requests that the engine does not have yet."""
        return self._preparing

    def __len__(self) -> int:
        """All requests."""
        return self._preparing + len(self._waiting)

    @contextlib.contextmanager
    def hold(self, count: int) -> Iterator[Room]:
        """Room while requests are prepared, so that no more are prepared than may wait.

        Raises ApiError: 429 if too many wait, 400 if so many can never wait.
        """
        self._check(count)
        room = Room(count)
        self._preparing += count
        try:
            yield room
        finally:
            self._preparing -= room.count

    def enter(self, room: Room, request_ids: Sequence[str]) -> None:
        """Requests that are prepared wait in the room held for them."""
        assert len(request_ids) == room.count, "room was held for other requests"
        self._preparing -= room.count
        room.count = 0
        self._waiting.update(request_ids)

    def leave(self, request_id: str) -> None:
        """A request waits no longer, if it did."""
        self._waiting.discard(request_id)

    def _check(self, count: int) -> None:
        if count > max(1, self._most):
            message = f"{count} answers are asked for at once, and job.max_waiting is {self._most}. Ask for less."
            raise ApiError(400, message, param="n", code="invalid_value")
        if len(self) + count > self._most:
            raise ApiError(
                429,
                f"{len(self)} requests wait already and job.max_waiting is {self._most}. Try later.",
                code="queue_full",
                retry_s=1 + len(self) / _PER_SECOND,
            )
