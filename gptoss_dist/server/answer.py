"""One answer of gpt-oss, read from the engine's tokens: pieces for a stream, and the whole at the end.

Nothing that the model emits is refused. Where a harmony message goes:

    analysis                        ─► reasoning
    final, commentary               ─► content, up to a stop text
    a call of a function            ─► a tool call, if functions were offered, else text of its channel
    a call of a built-in tool       ─► text of its channel: none is enabled
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum

from gptoss_dist.engine.request import Finish, TokenLogprobs
from gptoss_dist.harmony.conversation import stop_tokens
from gptoss_dist.harmony.header import FIRST_CONTROL, Header
from gptoss_dist.harmony.stream import Delta, Reader, tool_name
from gptoss_dist.server.event_reader import EventReader
from gptoss_dist.server.shown_text import Chosen, Shown, ShownText

END_OF_TEXT = 199999
_FUNCTIONS = "functions."
_BETWEEN_CHANNELS = "\n"


class Kind(Enum):
    """What a piece belongs to."""

    reasoning = "reasoning"
    content = "content"
    call = "call"


@dataclass(frozen=True)
class Piece:
    """Text as it comes. The first piece of a call has an empty text; `call` is its index from 0.

    `channel` is the harmony channel of the message that the text stands in.
    """

    kind: Kind
    text: str
    channel: str
    call: int | None = None
    chosen: tuple[Chosen, ...] = ()


@dataclass
class Call:
    """A tool call; `arguments` grow as they come."""

    id: str
    name: str
    parts: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """As the model wrote them: JSON, if it got it right."""
        return "".join(self.parts)


def harmony_stop_tokens() -> tuple[int, ...]:
    """Tokens that end an answer: `<|return|>`, `<|call|>` and the end of text."""
    return tuple(sorted({*stop_tokens(), END_OF_TEXT}))


def is_call(recipient: str | None, functions: Collection[str]) -> bool:
    """Whether a message to a recipient is a call that the client asked for by offering `functions`."""
    if recipient is None or not functions:
        return False
    return recipient.startswith(_FUNCTIONS) or tool_name(recipient) in functions


class AnswerReader(EventReader[Piece]):
    """Reads the events of one request; `finish_reason` is set once nothing more is wanted of it."""

    def __init__(
        self, salt: str, *, stop: Sequence[str] = (), functions: Collection[str] = (), one_call: bool = False
    ) -> None:
        """`salt` makes call ids differ; `functions` are those offered; with `one_call` a second call is not begun."""
        super().__init__()
        self._reader = Reader(salt)
        self._shown = ShownText(stop)
        self._functions, self._one_call = frozenset(functions), one_call
        self._is_call: dict[str, int | None] = {}
        self._content_channel: str | None = None
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self.calls: list[Call] = []

    @property
    def content(self) -> str | None:
        """The text of the answer; None if there is none."""
        return "".join(self._content) if self._content_channel is not None else None

    @property
    def reasoning(self) -> str | None:
        """The text of the analysis; None if there is none."""
        return "".join(self._reasoning) if self._reasoning else None

    def _feed(self, token: int, logprobs: TokenLogprobs | None) -> list[Piece]:
        deltas = self._reader.feed(token)
        header = self._reader.header
        if header is not None and 0 <= token < FIRST_CONTROL:
            self.reasoning_tokens += header.channel == "analysis"
            if logprobs is not None and self._is_content(header):
                self._shown.choose(token, logprobs)
        return self._pieces(deltas)

    def _end(self, finish: Finish) -> list[Piece]:
        pieces = self._pieces(self._reader.flush())
        if self.finish_reason is not None:
            return pieces
        pieces += self._show(self._shown.flush())
        called = bool(self.calls) and finish is Finish.stop  # cut short, the arguments may be half of them
        cut = finish in (Finish.length, Finish.blocked)
        self.finish_reason = "tool_calls" if called else "length" if cut else "stop"
        return pieces

    def _pieces(self, deltas: Sequence[Delta]) -> list[Piece]:
        pieces: list[Piece] = []
        for delta in deltas:
            if self.finish_reason is not None:
                break
            if delta.call_id is not None and is_call(delta.recipient, self._functions):
                pieces += self._call(delta)
            elif delta.channel == "analysis":
                pieces += self._reason(delta.text)
            else:
                pieces += self._say(delta)
        return pieces

    def _is_content(self, header: Header) -> bool:
        return header.channel != "analysis" and header.recipient is None

    def _call(self, delta: Delta) -> list[Piece]:
        if not self.calls or self.calls[-1].id != delta.call_id:
            if self.calls and self._one_call:
                self.finish_reason = "tool_calls"
                return []
            self.calls.append(Call(str(delta.call_id), tool_name(delta.recipient or "")))
            return [Piece(Kind.call, "", delta.channel, len(self.calls) - 1)]
        self.calls[-1].parts.append(delta.text)
        return [Piece(Kind.call, delta.text, delta.channel, len(self.calls) - 1)]

    def _reason(self, text: str) -> list[Piece]:
        if not text:
            return []
        self._reasoning.append(text)
        return [Piece(Kind.reasoning, text, "analysis")]

    def _say(self, delta: Delta) -> list[Piece]:
        text = delta.text
        if self._content_channel not in (None, delta.channel) and text:
            text = _BETWEEN_CHANNELS + text
        if text:
            self._content_channel = delta.channel
        shown = self._shown.feed(text)
        if self._shown.stopped:
            self.finish_reason = "stop"
        return self._show(shown)

    def _show(self, shown: Shown | None) -> list[Piece]:
        """A piece of content, if there is one."""
        if shown is None:
            return []
        self._content.append(shown.text)
        return [Piece(Kind.content, shown.text, self._content_channel or "final", chosen=shown.chosen)]
