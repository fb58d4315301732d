"""From the events of one request to pieces that a client can be sent: what the readers of all APIs have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from gptoss_dist.engine.request import Event, Finish, TokenLogprobs

P = TypeVar("P")


class EventReader(ABC, Generic[P]):
    """Reads the events of one request; `finish_reason` is set once nothing more is wanted of it."""

    def __init__(self) -> None:
        """Nothing was read yet."""
        self.finish_reason: str | None = None
        """stop, length or tool_calls."""
        self.tokens = 0
        """Tokens taken in, control tokens too."""
        self.reasoning_tokens = 0
        """Tokens of text on the analysis channel."""

    def take(self, event: Event) -> list[P]:
        """What became readable by an event; nothing after `finish_reason` is set."""
        pieces: list[P] = []
        for place, token in enumerate(event.tokens):
            if self.finish_reason is not None:
                return pieces
            self.tokens += 1
            pieces += self._feed(token, event.logprobs[place] if event.logprobs else None)
        if event.finish is not None and self.finish_reason is None:
            pieces += self._end(event.finish)
        return pieces

    @abstractmethod
    def _feed(self, token: int, logprobs: TokenLogprobs | None) -> list[P]:
        """What became readable by a token."""

    @abstractmethod
    def _end(self, finish: Finish) -> list[P]:
        """The engine gives no more tokens: the rest, and why it ended."""
