"""The header of a message as a model wrote it, well-formed or not: who it is for, and on which channel.

openai-harmony parses well-formed headers. What it refuses or misreads is read here word by word, so that no output is
ever refused: an unknown channel is `final`, a message in another role's name is `analysis`.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from openai_harmony import (  # type: ignore[import-untyped]
    HarmonyEncoding,
    HarmonyError,
    Role,
    StreamableParser,
)

CHANNELS = ("analysis", "commentary", "final")
CONSTRAIN, CHANNEL, MESSAGE = 200003, 200005, 200008
FIRST_CONTROL = 199998

_RECIPIENT = re.compile(r"(?:^|\s)to=([\w.\-]+)")
_RECIPIENT_FIRST = re.compile(r"\s*to=([\w.\-]+)")
_ROLE = re.compile(r"\s*(assistant|user|system|developer|tool)\b")
_OTHER_SPEAKER = re.compile(r"\s*(user|system|developer|tool|python|(?:functions|browser)\.\S+)(\s|$)")
_NOT_TOOLS = ("assistant", "user", "system", "developer", "all")


@dataclass(frozen=True)
class Header:
    """Where a message goes: its channel, one of CHANNELS, and the tool that it calls."""

    channel: str
    recipient: str | None = None


@dataclass(frozen=True)
class _Words:
    """A header taken apart: text before `<|channel|>`, after the last such token, and after `<|constrain|>`."""

    lead: str
    channel: str | None
    constrain: str | None

    @property
    def all(self) -> str:
        return " ".join(part for part in (self.lead, self.channel, self.constrain) if part)


def open_message(encoding: HarmonyEncoding, tokens: list[int], started: bool) -> tuple[Header, StreamableParser]:
    """Read a header's tokens (without `<|start|>` and `<|message|>`); the parser stands at the message's content.

    started: whether `<|start|>` came first, so that the header names its role.
    """
    words = _take_apart(encoding, tokens)
    if started and _OTHER_SPEAKER.match(words.lead):
        header = Header("analysis")
        return header, content_parser(encoding, header)
    parsed = _parse(encoding, tokens) if tokens.count(CHANNEL) <= 1 else None
    believed = _judge(parsed, words) if parsed is not None else None
    if parsed is not None and believed is not None:
        return believed, parsed
    header = _guess(words)
    return header, content_parser(encoding, header)


def content_parser(encoding: HarmonyEncoding, header: Header) -> StreamableParser:
    """A parser at the start of a message's content, for a header that had to be made up."""
    parser = StreamableParser(encoding, role=Role.ASSISTANT, strict=False)
    for token in (CHANNEL, *_channel_tokens(encoding)[header.channel], MESSAGE):
        parser.process(token)
    return parser


@functools.cache
def _channel_tokens(encoding: HarmonyEncoding) -> dict[str, list[int]]:
    return {channel: encoding.encode(channel) for channel in CHANNELS}


def leftover(encoding: HarmonyEncoding, tokens: list[int], started: bool) -> tuple[Header, str]:
    """A header that never reached `<|message|>`: what is known of it, and the words in it that are content."""
    words = _take_apart(encoding, tokens)
    lead = _ROLE.sub("", words.lead, count=1) if started else words.lead
    recipient, text = _split_recipient(lead)
    channel = "final"
    if words.channel is not None:
        name, rest = _split_word(words.channel)
        known = next((channel for channel in CHANNELS if channel.startswith(name)), None)
        channel = known if known is not None and name else "final"
        called, text = _split_recipient(rest if known is not None else words.channel)
        recipient = called or recipient
    if words.constrain is not None:
        text += _split_word(words.constrain)[1]
    return _header(channel, recipient), text.lstrip() if words.channel is not None or started else text


def _parse(encoding: HarmonyEncoding, tokens: list[int]) -> StreamableParser | None:
    parser = StreamableParser(encoding, role=Role.ASSISTANT, strict=False)
    try:
        for token in (*tokens, MESSAGE):
            parser.process(token)
    except HarmonyError:
        return None
    return parser


def _judge(parser: StreamableParser, words: _Words) -> Header | None:
    """What the library read, where it can be believed; None where it cannot.

    openai-harmony 0.0.8 takes a lone content type for the recipient (`<|channel|>final <|constrain|>json`), so a
    recipient counts only when the header spells it with `to=`, or when it is a known family of tools.
    """
    channel, recipient = parser.current_channel, parser.current_recipient
    if channel not in CHANNELS:
        return None
    spelled = _RECIPIENT.search(words.all)
    if recipient is not None and (spelled is None or spelled[1] != recipient) and not _is_tool(recipient):
        recipient = None
    if recipient is None and spelled is not None:
        return None
    return _header(channel, recipient)


def _guess(words: _Words) -> Header:
    """The channel and recipient that the words name, wherever they stand."""
    spelled = _RECIPIENT.search(words.all)
    recipient = spelled[1] if spelled else None
    named = _split_word(words.channel or "")[0]
    channel = next((channel for channel in CHANNELS if named and named.startswith(channel)), None)
    if channel is None and words.channel is None:
        channel = next((channel for channel in CHANNELS if f"assistant{channel}" in words.lead), None)
    return _header(channel or "final", recipient)


def _header(channel: str, recipient: str | None) -> Header:
    """A call is never part of the final answer; a message to a person is no call."""
    if recipient is None or recipient in _NOT_TOOLS or recipient.endswith("."):
        return Header(channel)
    return Header("commentary" if channel == "final" else channel, recipient)


def _is_tool(recipient: str) -> bool:
    return recipient == "python" or re.fullmatch(r"(functions|browser)\.[\w.\-]+", recipient) is not None


def _split_word(text: str) -> tuple[str, str]:
    """(first word, the rest as it is)."""
    match = re.match(r"\s*([A-Za-z]*)(.*)", text, re.DOTALL)
    return (match[1], match[2]) if match else ("", text)


def _split_recipient(text: str) -> tuple[str | None, str]:
    """(the recipient that the text begins with, the rest); a `to=` further on is part of what is said."""
    match = _RECIPIENT_FIRST.match(text)
    return (match[1], text[match.end() :]) if match else (None, text)


def _take_apart(encoding: HarmonyEncoding, tokens: list[int]) -> _Words:
    parts: dict[int, list[int]] = {0: []}
    at = 0
    for token in tokens:
        if token in (CHANNEL, CONSTRAIN):
            at = token
            parts[0] += parts.get(token, [])  # of several, the last one counts
            parts[at] = []
        else:
            parts[at].append(token)
    text = {mark: encoding.decode(part) for mark, part in parts.items()}
    return _Words(text[0], text.get(CHANNEL), text.get(CONSTRAIN))
