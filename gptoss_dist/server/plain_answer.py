"""One bare continuation of a text, read from the engine's tokens; no harmony. Control tokens stand for no text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from gptoss_dist.engine.request import Finish, TokenLogprobs
from gptoss_dist.harmony.header import FIRST_CONTROL
from gptoss_dist.server.event_reader import EventReader
from gptoss_dist.server.shown_text import Shown, ShownText
from gptoss_dist.server.token_text import token_bytes


class PlainReader(EventReader[Shown]):
    """Reads the events of one request; `finish_reason` is set once nothing more is wanted of it."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        """`stop`: texts that end the answer and are no part of it."""
        super().__init__()
        self._shown = ShownText(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def _feed(self, token: int, logprobs: TokenLogprobs | None) -> list[Shown]:
        if token >= FIRST_CONTROL:
            return []
        if logprobs is not None:
            self._shown.choose(token, logprobs)
        return self._say(self._decoder.decode(token_bytes(token)))

    def _end(self, finish: Finish) -> list[Shown]:
        pieces = self._say(self._decoder.decode(b"", final=True))
        if self.finish_reason is None:
            self.finish_reason = "length" if finish is Finish.length else "stop"
            pieces += _if_any(self._shown.flush())
        return pieces

    def _say(self, text: str) -> list[Shown]:
        shown = self._shown.feed(text)
        if self._shown.stopped:
            self.finish_reason = "stop"
        return _if_any(shown)


def _if_any(shown: Shown | None) -> list[Shown]:
    return [] if shown is None else [shown]
