"""Markdown that comes in pieces, on a terminal: blocks that are over are printed for good, the last one grows in place.

A terminal cannot take back what has scrolled out of its window. So only what fits into the window is drawn again: of
the last block (a paragraph, a list, a table, code) its last lines. The whole of it is printed once it is over.
"""

from __future__ import annotations

import re
import time

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment, SegmentLines

_REFRESH_S = 0.1
_LINE_END = re.compile(r"\r\n?|\n")


class GrowingMarkdown:
    """One text on one terminal, from its first piece to `close`."""

    def __init__(self, console: Console) -> None:
        """Nothing is there yet."""
        self._console, self._tail = console, _Tail()
        # a thread of its own would draw between the two halves of a print
        self._live = Live(self._tail, console=console, auto_refresh=False, transient=True)
        self._live.start()
        self._drawn_at = 0.0

    def feed(self, piece: str) -> None:
        """The text goes on."""
        text = self._tail.text + piece
        self._cut(text, _begin_of_last_block(text) if _LINE_END.search(piece) else 0)
        if (now := time.monotonic()) - self._drawn_at >= _REFRESH_S:
            self._drawn_at = now
            self._live.refresh()

    def close(self) -> None:
        """The text is over, or broke off."""
        self._cut(self._tail.text, len(self._tail.text))
        self._live.stop()

    def _cut(self, text: str, place: int) -> None:
        """Print what lies before `place` for good, above what still grows."""
        over = _rendered(text[:place], self._tail.has_gap, self._console, self._console.options)
        self._tail.text = text[place:]
        if over:
            self._tail.has_gap = not _is_empty(over[-1])
            self._console.print(SegmentLines(over, new_lines=True), soft_wrap=False)


class _Tail:
    """What still grows, as far as the window holds it; the cursor needs a line too."""

    def __init__(self) -> None:
        self.text = ""
        self.has_gap = False
        """Whether an empty line comes first: something stands above that does not end with one."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The last lines."""
        lines = _rendered(self.text, self.has_gap, console, options)
        yield SegmentLines(lines[1 - options.size.height :], new_lines=True)


def _begin_of_last_block(text: str) -> int:
    """Where the last block of the lines that are whole begins: nothing that comes changes those before it."""
    ends = [end.end() for end in _LINE_END.finditer(text)]
    blocks = [token.map for token in Markdown(text[: ends[-1]]).parsed if token.level == 0 and token.map is not None]
    line = blocks[-1][0] if blocks else 0
    return ends[line - 1] if line else 0


def _rendered(text: str, has_gap: bool, console: Console, options: ConsoleOptions) -> list[list[Segment]]:
    """The lines of whole blocks, with one empty line before them or none; rich begins some blocks with one."""
    lines = console.render_lines(Markdown(text), options, pad=False) if text.strip() else []
    while lines and _is_empty(lines[0]):
        del lines[0]
    return [[], *lines] if lines and has_gap else lines


def _is_empty(line: list[Segment]) -> bool:
    return not any(segment.text for segment in line)
