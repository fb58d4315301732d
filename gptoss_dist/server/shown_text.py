"""Text as a client is shown it: up to a stop text, with the log probabilities of the tokens that begin in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from gptoss_dist.engine.request import TokenLogprobs
from gptoss_dist.harmony.stops import StopFinder


@dataclass(frozen=True)
class Chosen:
    """A token of the text and its log probabilities."""

    token: int
    logprobs: TokenLogprobs


@dataclass(frozen=True)
class Shown:
    """A piece; `offsets` are the places of the tokens' beginnings in the whole text, in characters."""

    text: str
    chosen: tuple[Chosen, ...]
    offsets: tuple[int, ...]


class ShownText:
    """One text as it grows; what may be the beginning of a stop text is held back."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        """`stop`: texts that end this one and are no part of it."""
        self._finder = StopFinder(stop)
        self._chosen: deque[tuple[int, Chosen]] = deque()
        self._fed = self._shown = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop text was found."""
        return self._finder.stopped

    def choose(self, token: int, logprobs: TokenLogprobs) -> None:
        """Say which token the text that is fed next begins with."""
        self._chosen.append((self._fed, Chosen(token, logprobs)))

    def feed(self, text: str) -> Shown | None:
        """What can be shown once this text has come."""
        self._fed += len(text)
        return self._show(self._finder.feed(text))

    def flush(self) -> Shown | None:
        """What was held back, now that nothing more comes; the tokens of no text, too."""
        return None if self.stopped else self._show(self._finder.flush(), whole=True)

    def _show(self, text: str, whole: bool = False) -> Shown | None:
        self._shown += len(text)
        begun = []
        while self._chosen and (whole or self._chosen[0][0] < self._shown):
            begun.append(self._chosen.popleft())
        if not text and not begun:
            return None
        return Shown(text, tuple(one for _, one in begun), tuple(place for place, _ in begun))
