"""What the chat shows. On a terminal: reasoning dimmed, the answer as Markdown while it grows; else plain text."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.text import Text

from gptoss_dist.chat.conversation import Piece
from gptoss_dist.chat.growing_markdown import GrowingMarkdown
from gptoss_dist.output import write

_LABELS = {"analysis": "analysis: ", "final": "final: ", "commentary": "commentary: "}


class Screen:
    """Shows one answer after the other; use it as a context for each."""

    def __init__(self, show_analysis: bool, console: Console | None = None) -> None:
        """`console`: where to; None: standard output."""
        self._console = console or Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._show_analysis = show_analysis
        self._channel: str | None = None
        self._call: str | None = None
        self._answer: GrowingMarkdown | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether a person is looking."""
        return self._console.is_terminal

    def note(self, text: str) -> None:
        """A word of the chat itself."""
        if not text:
            return
        if self.is_terminal:
            self._console.print(Text(text, style="cyan"))
        else:
            write(text + "\n")

    def __enter__(self) -> Self:
        """An answer begins."""
        self._channel = self._call = None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """It ended, or broke off."""
        self._end_channel()
        if not self.is_terminal and self._channel is not None:
            write("\n")

    def show(self, piece: Piece) -> None:
        """Show a piece of the answer."""
        if piece.channel == "analysis" and not self._show_analysis:
            return
        if (piece.channel, piece.call_id) != (self._channel, self._call):
            self._end_channel()
            self._begin(piece)
        if not self.is_terminal:
            write(piece.text)
        elif self._answer is not None:
            self._answer.feed(piece.text)
        else:
            self._console.print(Text(piece.text, style="dim" if piece.channel == "analysis" else "yellow"), end="")

    def _begin(self, piece: Piece) -> None:
        first, self._channel, self._call = self._channel is None, piece.channel, piece.call_id
        label = f"call {piece.name}: " if piece.channel == "call" else _LABELS.get(piece.channel, "")
        if not self.is_terminal:
            write(("" if first else "\n\n") + label)
        elif piece.channel == "call":
            self._console.print(Text(f"→ {piece.name} ", style="bold yellow"), end="")
        elif piece.channel != "analysis":
            self._answer = GrowingMarkdown(self._console)

    def _end_channel(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None
        elif self.is_terminal and self._channel is not None:
            self._console.print()
            self._console.print()
