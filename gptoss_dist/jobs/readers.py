"""Tokens to text for one answer: through harmony's channels, or as bare text."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from gptoss_dist.engine.request import Finish
from gptoss_dist.harmony.conversation import stop_tokens
from gptoss_dist.harmony.stops import cut, possible_stop
from gptoss_dist.harmony.stream import Delta, Reader
from gptoss_dist.harmony.vocab import load_encoding
from gptoss_dist.schema.job.generate import Template

_END_OF_TEXT = 199999


class TextReader(ABC):
    """Takes tokens as they come; `stopped` once a stop text was read."""

    stop_tokens: tuple[int, ...]

    def __init__(self, stop: Sequence[str]) -> None:
        """`stop`: texts that end the answer and are not part of it."""
        self._stop = tuple(stop)
        self._shown = ""
        self.stopped = False
        self._finished = False

    @abstractmethod
    def feed(self, token: int) -> None:
        """Take one token."""

    @abstractmethod
    def finish(self, reason: Finish) -> dict[str, Any]:
        """The answer, its parts under the names of `--json`."""

    @abstractmethod
    def text(self, show_analysis: bool) -> str:
        """All that is readable so far, labelled by channel."""

    def take(self, show_analysis: bool) -> str:
        """What `text` has gained since the last call.

        A text that may be the start of a stop text is held back until `finish`.
        """
        whole = self.text(show_analysis)
        if not (self.stopped or self._finished):
            whole = whole[: len(whole) - possible_stop(whole, self._stop)]
        new = whole[len(self._shown) :]
        self._shown = whole
        return new

    def _cut(self, text: str) -> tuple[str, bool]:
        return cut(text, self._stop)


class HarmonyReader(TextReader):
    """Channels apart: analysis, commentary and its tool calls, final. Stop texts are looked for in final."""

    def __init__(self, stop: Sequence[str]) -> None:
        """See `TextReader`."""
        super().__init__(stop)
        self.stop_tokens = tuple(sorted({*stop_tokens(), _END_OF_TEXT}))
        self._reader = Reader()
        self._parts: list[tuple[str, str]] = []
        self._final = ""

    def feed(self, token: int) -> None:
        """Take one token and what became readable by it."""
        self._take_in(self._reader.feed(token))

    def finish(self, reason: Finish) -> dict[str, Any]:
        """`final`, `analysis`, `commentary`, `tool_calls`, `finish_reason`."""
        if not self.stopped:
            self._take_in(self._reader.flush())
        self._finished = True
        answer = self._reader.finish(reason.value)
        final = self._cut(answer.final)[0] if answer.final is not None else None
        called = bool(answer.tool_calls) and reason is Finish.stop  # cut short, the arguments may be half of them
        ended = "stop" if self.stopped else "tool_calls" if called else reason.value
        return {
            "final": final,
            "analysis": answer.analysis,
            "commentary": answer.commentary,
            "tool_calls": [dataclasses.asdict(call) for call in answer.tool_calls],
            "finish_reason": ended,
        }

    def text(self, show_analysis: bool) -> str:
        """`analysis: …`, `call NAME: …`, `final: …`, one below the other."""
        shown = [(label, text) for label, text in self._parts if show_analysis or label != "analysis"]
        return "\n\n".join(f"{label}: {text}" for label, text in shown)

    def _take_in(self, deltas: Sequence[Delta]) -> None:
        for delta in deltas:
            if self.stopped:
                return
            label = delta.channel if delta.recipient is None else f"call {delta.recipient.removeprefix('functions.')}"
            if not self._parts or self._parts[-1][0] != label or (delta.recipient and not delta.text):
                self._parts.append((label, ""))
            text = self._parts[-1][1] + delta.text
            if label == "final":
                text, self.stopped = self._cut(text)
            self._parts[-1] = (label, text)


class PlainReader(TextReader):
    """The text as the model wrote it, for `job.template=raw`."""

    def __init__(self, stop: Sequence[str]) -> None:
        """See `TextReader`."""
        super().__init__(stop)
        self.stop_tokens = (_END_OF_TEXT,)
        self._whole = ""
        self._open: list[int] = []
        """Tokens since the last one that ended with a whole character."""
        self._text = ""

    def feed(self, token: int) -> None:
        """Take one token."""
        if token not in self.stop_tokens:
            self._open.append(token)
        text = load_encoding().decode(self._open)
        if text.endswith("\ufffd"):  # perhaps half of a character: wait for the rest
            self._text, self.stopped = self._cut(self._whole + text.rstrip("\ufffd"))
            return
        self._whole, self._open = self._whole + text, []
        self._text, self.stopped = self._cut(self._whole)

    def finish(self, reason: Finish) -> dict[str, Any]:
        """`final` (the text), `finish_reason`; the other parts are empty."""
        self._finished = True
        if not self.stopped:
            self._text, self.stopped = self._cut(self._whole + load_encoding().decode(self._open))
        return {
            "final": self._text,
            "analysis": None,
            "commentary": None,
            "tool_calls": [],
            "finish_reason": "stop" if self.stopped else reason.value,
        }

    def text(self, show_analysis: bool) -> str:  # noqa: ARG002
        """The text so far."""
        return self._text


def reader_for(template: Template, stop: Sequence[str]) -> TextReader:
    """The reader of what a model answers to a prompt of this template."""
    return PlainReader(stop) if template is Template.raw else HarmonyReader(stop)
