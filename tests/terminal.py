"""A terminal as far as rich's output needs one: what its window shows, and what has scrolled out of it."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\x1b\[\??([0-9;]*)([A-Za-z])|\x1b\]8;[^\x1b]*\x1b\\|[^\x1b]", re.DOTALL)


class Terminal:
    """Feed it text; AssertionError for a control sequence that it does not know."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.scrolled: list[str] = []
        self._window = [""]
        self._row = self._column = 0

    @property
    def lines(self) -> list[str]:
        """All lines, from the first that was ever written, without spaces at their ends."""
        return [line.rstrip() for line in [*self.scrolled, *self._window]]

    def feed(self, text: str) -> None:
        place = 0
        for token in _TOKEN.finditer(text):
            assert token.start() == place, f"unknown: {text[place : place + 20]!r}"
            place = token.end()
            if token[2] is not None:
                self._control(token[1], token[2])
            elif len(token[0]) == 1:
                self._write(token[0])
        assert place == len(text)

    def _control(self, arguments: str, letter: str) -> None:
        if letter == "A":
            self._row = max(0, self._row - int(arguments or 1))
        elif (letter, arguments) == ("K", "2"):
            self._window[self._row] = ""
        else:
            assert letter in "mhl", f"unknown: {arguments}{letter}"

    def _write(self, sign: str) -> None:
        if sign == "\r":
            self._column = 0
        elif sign == "\n":
            self._next_line()
        else:
            if self._column == self.width:
                self._next_line()
            line = self._window[self._row].ljust(self._column)
            self._window[self._row] = line[: self._column] + sign + line[self._column + 1 :]
            self._column += 1

    def _next_line(self) -> None:
        self._row, self._column = self._row + 1, 0
        if self._row == len(self._window):
            self._window.append("")
        if self._row == self.height:
            self.scrolled.append(self._window.pop(0))
            self._row -= 1
