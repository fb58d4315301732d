"""One bare continuation of a text, read from the engine's tokens; no harmony. Control tokens stand for no text."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from gptoss_dist.engine.request import Finish, TokenLogprobs
from gptoss_dist.harmony.header import FIRST_CONTROL
from gptoss_dist.harmony.stops import StopFinder
from gptoss_dist.server.answer import Chosen
from gptoss_dist.server.event_reader import EventReader
from gptoss_dist.server.token_text import token_bytes


@dataclass(frozen=True)
class PlainPiece:
    """Text as it comes, with the log probabilities of the tokens that begin in it, and their places in the text."""

    text: str
    chosen: tuple[Chosen, ...] = ()
    offsets: tuple[int, ...] = ()


class PlainReader(EventReader[PlainPiece]):
    """Reads the events of one request; `finish_reason` is set once nothing more is wanted of it."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        """`stop`: texts that end the answer and are no part of it."""
        super().__init__()
        self._finder = StopFinder(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._chosen: deque[tuple[int, Chosen]] = deque()
        self._fed = self._shown = 0

    def _feed(self, token: int, logprobs: TokenLogprobs | None) -> list[PlainPiece]:
        if token >= FIRST_CONTROL:
            return []
        if logprobs is not None:
            self._chosen.append((self._fed, Chosen(token, logprobs)))
        return self._say(self._decoder.decode(token_bytes(token)))

    def _end(self, finish: Finish) -> list[PlainPiece]:
        pieces = self._say(self._decoder.decode(b"", final=True))
        if self.finish_reason is None:
            self.finish_reason = "length" if finish is Finish.length else "stop"
            pieces += self._show(self._finder.flush(), whole=True)
        return pieces

    def _say(self, text: str) -> list[PlainPiece]:
        self._fed += len(text)
        shown = self._finder.feed(text)
        if self._finder.stopped:
            self.finish_reason = "stop"
        return self._show(shown)

    def _show(self, text: str, whole: bool = False) -> list[PlainPiece]:
        self._shown += len(text)
        chosen = []
        while self._chosen and (whole or self._chosen[0][0] < self._shown):
            chosen.append(self._chosen.popleft())
        if not text and not chosen:
            return []
        return [PlainPiece(text, tuple(one for _, one in chosen), tuple(place for place, _ in chosen))]
