"""The tokens of an answer as items of the Responses API that open, grow and close, one harmony message each.

Nothing that the model emits is refused. Where a harmony message goes:

    analysis                        ─► reasoning
    final, commentary               ─► message, up to a stop text
    a call of a function            ─► function_call, if functions were offered, else as text of its channel
    a call of a built-in tool       ─► as text of its channel: none is enabled
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from gptoss_dist.engine.request import Finish, TokenLogprobs
from gptoss_dist.harmony.header import FIRST_CONTROL
from gptoss_dist.harmony.stream import Delta, Reader, tool_name
from gptoss_dist.server.answer import Kind, is_call
from gptoss_dist.server.event_reader import EventReader
from gptoss_dist.server.shown_text import Chosen, Shown, ShownText

_BETWEEN_MESSAGES = "\n"


@dataclass(frozen=True)
class Opened:
    """An item begins. `call_id` and `name` are those of a call."""

    kind: Kind
    channel: str
    call_id: str = ""
    name: str = ""


@dataclass(frozen=True)
class Written:
    """Text of the open item, and the log probabilities of the tokens that begin in it."""

    text: str
    chosen: tuple[Chosen, ...] = ()


@dataclass(frozen=True)
class Closed:
    """The open item ends; `whole` unless it was cut short."""

    whole: bool


Step = Opened | Written | Closed


class TurnReader(EventReader[Step]):
    """Reads the events of one request; `finish_reason` is set once nothing more is wanted of it."""

    def __init__(
        self, salt: str, *, stop: Sequence[str] = (), functions: Collection[str] = (), one_call: bool = False
    ) -> None:
        """`salt` makes call ids differ; `functions` are those offered; with `one_call` a second call is not begun."""
        super().__init__()
        self._reader = Reader(salt)
        self._stop, self._functions, self._one_call = tuple(stop), frozenset(functions), one_call
        self._open: Opened | None = None
        self._shown = ShownText()
        """Of the open message."""
        self._spoken: set[str] = set()
        self._separated = False
        self._calls = self._messages = 0

    def _feed(self, token: int, logprobs: TokenLogprobs | None) -> list[Step]:
        before = self._reader.header
        deltas = self._reader.feed(token)
        after = self._reader.header
        if after is None and before is None:  # a header that never became one is a message by itself, if anything
            return [*self._begin(deltas), *self._close(True)] if deltas else []
        steps: list[Step] = []
        if before is None and after is not None:
            first = Delta(after.channel, after.recipient, "")
            steps += self._begin(deltas or [first])
        if after is not None and token < FIRST_CONTROL:
            self.reasoning_tokens += after.channel == "analysis"
            if logprobs is not None and self._open is not None and self._open.kind is Kind.content:
                self._shown.choose(token, logprobs)
        if before is not None:
            steps += self._write(deltas)
        return [*steps, *self._close(True)] if after is None else steps

    def _end(self, finish: Finish) -> list[Step]:
        cut = finish in (Finish.length, Finish.blocked)
        was_open = self._reader.header is not None
        deltas = self._reader.flush()
        steps = self._write(deltas) if was_open else self._begin(deltas) if deltas else []
        if self.finish_reason is not None:  # the last words held a stop text, or began a call too many
            return steps
        steps += self._close(not cut)
        self.finish_reason = "length" if cut else "stop"
        if not cut and not self._calls and not self._messages:  # whoever asked gets an answer, be it empty
            steps += [Opened(Kind.content, "final"), Closed(True)]
        return steps

    def _begin(self, deltas: Sequence[Delta]) -> list[Step]:
        """A message, and its first words."""
        opened = self._opened(deltas[0])
        if opened.kind is Kind.call and self._calls and self._one_call:
            self.finish_reason = "stop"
            return []
        self._open = opened
        self._calls += opened.kind is Kind.call
        self._messages += opened.kind is Kind.content
        self._shown = ShownText(self._stop)
        self._separated = deltas[0].recipient is None and opened.channel in self._spoken
        return [opened, *self._write(deltas)]

    def _opened(self, delta: Delta) -> Opened:
        if is_call(delta.recipient, self._functions):
            return Opened(Kind.call, delta.channel, str(delta.call_id), tool_name(delta.recipient or ""))
        return Opened(Kind.reasoning if delta.channel == "analysis" else Kind.content, delta.channel)

    def _write(self, deltas: Sequence[Delta]) -> list[Step]:
        steps: list[Step] = []
        for delta in deltas:
            text = self._own_text(delta)
            if self._open is None or not text:
                continue
            if self._open.kind is not Kind.content:
                steps.append(Written(text))
                continue
            steps += _written(self._shown.feed(text))
            if self._shown.stopped:
                self.finish_reason = "stop"
                return [*steps, *self._close(True)]
        return steps

    def _own_text(self, delta: Delta) -> str:
        """The text without the separator that `Reader` puts between two messages of a channel."""
        text = delta.text
        if delta.recipient is None and text:
            self._spoken.add(delta.channel)
            if self._separated:
                self._separated = False
                return text.removeprefix(_BETWEEN_MESSAGES)
        return text

    def _close(self, whole: bool) -> list[Step]:
        if self._open is None:
            return []
        steps = _written(self._shown.flush() if self._open.kind is Kind.content else None)
        self._open = None
        return [*steps, Closed(whole)]


def _written(shown: Shown | None) -> list[Step]:
    return [] if shown is None else [Written(shown.text, shown.chosen)]
