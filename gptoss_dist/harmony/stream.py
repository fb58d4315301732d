"""What a model emits, read token by token: deltas for a stream, and the answer at the end.

Nothing that a model emits is refused. A header that cannot be parsed, a missing `<|message|>`, a stray control token, a
cut in the middle of a character: the rest is still text on some channel, and no control token is ever part of a text.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from openai_harmony import StreamableParser  # type: ignore[import-untyped]

from gptoss_dist.harmony import header as headers
from gptoss_dist.harmony.header import CHANNEL, CONSTRAIN, FIRST_CONTROL, MESSAGE, Header
from gptoss_dist.harmony.vocab import load_encoding

_END_OF_TEXT, _RETURN, _START, _END, _CALL = 199999, 200002, 200006, 200007, 200012
_TURN_ENDS = (_END_OF_TEXT, _RETURN, _CALL)
# A real header is far shorter; words beyond this are an answer without a header.
_LONGEST_HEADER = 64
_BETWEEN_MESSAGES = "\n"


@dataclass(frozen=True)
class Delta:
    """A piece of text as it comes.

    recipient: the tool that the piece is an argument for; None for text.
    call_id: the id of the tool call; the first delta of a call carries it with an empty text.
    """

    channel: str
    recipient: str | None
    text: str
    call_id: str | None = None


@dataclass(frozen=True)
class ToolCall:
    """One call. name: a function's own name, or a built-in tool's full name (`python`, `browser.search`).

    arguments: the text as the model wrote it: JSON when the model got it right, code for `python`.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Answer:
    """The whole of a turn; a text is None where the model opened no message on that channel.

    complete: the model ended its turn by itself.
    """

    final: str | None
    analysis: str | None
    commentary: str | None
    tool_calls: tuple[ToolCall, ...]
    complete: bool


@dataclass
class _Message:
    """The message being read.

    separator: goes before the first piece of text. parsed: how many characters its parser has given.
    """

    header: Header
    parser: StreamableParser
    call_id: str | None = None
    separator: str = ""
    arguments: list[str] = field(default_factory=list)
    parsed: int = 0


def tool_name(recipient: str) -> str:
    """`functions.get_weather` ─► `get_weather`; a built-in tool keeps its full name."""
    return recipient.removeprefix("functions.")


class Reader:
    """Reads one turn of the assistant, whose prompt ended in `<|start|>assistant`."""

    def __init__(self, salt: str = "") -> None:
        """Begin a turn.

        salt: makes tool call ids differ between turns that begin alike, such as a request's id. The ids depend on it,
            and on the tokens up to the call's header, alone: every rank that reads the same tokens makes the same ids.
        """
        self._encoding = load_encoding()
        self._seen = hashlib.sha256(salt.encode())
        self._header: list[int] = []
        self._started = False
        self._message: _Message | None = None
        self._texts: dict[str, list[str]] = {}
        self._calls: list[ToolCall] = []
        self._turn_ended = False

    @property
    def header(self) -> Header | None:
        """Of the message that is being read; None between messages and within a header."""
        return self._message.header if self._message is not None else None

    def feed(self, token_id: int) -> list[Delta]:
        """Take one token, stop tokens included; what became readable by it."""
        self._seen.update(f"{token_id} ".encode())
        self._turn_ended = token_id in _TURN_ENDS
        if token_id in (_START, _END) or self._turn_ended:
            deltas = self._close(called=token_id == _CALL)
            self._started = token_id == _START
            return deltas
        if token_id == CHANNEL:
            deltas = self._close() if self._message else []
            self._header.append(token_id)
            return deltas
        if token_id == MESSAGE and self._message is None:
            return self._open(*headers.open_message(self._encoding, self._header, self._started))
        if 0 <= token_id < FIRST_CONTROL:
            return self._read(token_id)
        if token_id == CONSTRAIN and self._message is None:
            self._header.append(token_id)
        return []  # any other control token has no meaning here

    def flush(self) -> list[Delta]:
        """Close what is open; the text that was held back, such as half of a character. For streams, before finish."""
        return self._close()

    def finish(self, finish_reason_hint: str | None = None) -> Answer:
        """The answer. The hint `stop` says that a stop token ended the turn and was not fed."""
        self._close()
        texts = {channel: "".join(parts) for channel, parts in self._texts.items()}
        return Answer(
            final=texts.get("final"),
            analysis=texts.get("analysis"),
            commentary=texts.get("commentary"),
            tool_calls=tuple(self._calls),
            complete=self._turn_ended or finish_reason_hint == "stop",
        )

    def _read(self, token_id: int) -> list[Delta]:
        """A token of text: content where a message is open, else part of a header."""
        message = self._message
        if message is not None:
            message.parser.process(token_id)
            text = message.parser.last_content_delta or ""
            message.parsed += len(text)
            return self._emit(message, text)
        self._header.append(token_id)
        if len(self._header) <= _LONGEST_HEADER:
            return []
        header, text = headers.leftover(self._encoding, self._header, self._started)
        if text.endswith("\ufffd"):  # perhaps half of a character: wait for the rest
            return []
        deltas = self._open(header, headers.content_parser(self._encoding, header))
        return deltas + (self._emit(self._message, text) if self._message else [])

    def _open(self, header: Header, parser: StreamableParser) -> list[Delta]:
        """Begin a message, and announce it when it is a tool call."""
        self._header, self._started = [], False
        if header.recipient is None:
            texts = self._texts.setdefault(header.channel, [])
            self._message = _Message(header, parser, separator=_BETWEEN_MESSAGES if texts else "")
            return []
        seen = self._seen.copy()
        seen.update(f"{len(self._calls)} {header.recipient}".encode())
        call_id = f"call_{seen.hexdigest()[:24]}"
        self._message = _Message(header, parser, call_id)
        return [Delta(header.channel, header.recipient, "", call_id)]

    def _emit(self, message: _Message, text: str) -> list[Delta]:
        """Text of the open message; the separator from an earlier message goes before its first piece."""
        if not text:
            return []
        if message.call_id is None:
            text, message.separator = message.separator + text, ""
            self._texts[message.header.channel].append(text)
        else:
            message.arguments.append(text)
        return [Delta(message.header.channel, message.header.recipient, text, message.call_id)]

    def _close(self, called: bool = False) -> list[Delta]:
        """End the open message, or the header that never became one; afterwards neither is open."""
        deltas: list[Delta] = []
        if self._message is None and self._header:
            header, text = headers.leftover(self._encoding, self._header, self._started)
            if text.strip() or (called and header.recipient):
                deltas += self._open(header, headers.content_parser(self._encoding, header))
                deltas += self._emit(self._message, text) if self._message else []
        message, self._message = self._message, None
        self._header, self._started = [], False
        if message is not None:
            message.parser.process_eos()
            whole = "".join(content.text for content in message.parser.messages[-1].content)
            deltas += self._emit(message, whole[message.parsed :])
            if message.header.recipient is not None and message.call_id is not None:
                name = tool_name(message.header.recipient)
                self._calls.append(ToolCall(message.call_id, name, "".join(message.arguments)))
        return deltas
