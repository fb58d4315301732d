"""Ctrl-C in a chat ends the turn, and not the chat.

As a signal it would reach the launcher of the ranks too, and end them all. So while an answer comes, as while a line is
typed, the terminal makes a key of it; rank 0 reads the keys, and the other ranks learn of it as of every cancelled
request. What else is typed meanwhile is kept for the next line.
"""

from __future__ import annotations

import os
import select
import signal
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from prompt_toolkit.input import create_input
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.keys import Keys


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """The user ended the turn."""


class Interrupts:
    """Ctrl-C while an answer comes. Where nobody types at a terminal there is none, and SIGINT is what it always is."""

    def __init__(self, keyboard: TextIO | None) -> None:
        """`keyboard`: standard input."""
        self._input = create_input(keyboard) if keyboard is not None and keyboard.isatty() else None
        self._modes = None if self._input is None else termios.tcgetattr(self._input.fileno())
        self._requested = threading.Event()

    @property
    def requested(self) -> bool:
        """Whether the answer under way is to end."""
        return self._requested.is_set()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While an answer comes. A second Ctrl-C, if the first one does not end it, is a signal to this process."""
        self._requested.clear()
        if self._input is None:
            yield
            return
        over, end = os.pipe()
        typed: list[KeyPress] = []
        thread = threading.Thread(target=self._watch, args=(over, typed), name="gptoss-interrupts", daemon=True)
        try:
            with self._input.raw_mode():
                thread.start()
                yield
        finally:
            os.close(end)
            thread.join()
            os.close(over)
            store_typeahead(self._input, [*typed, *self._input.flush_keys()])

    def restore(self) -> None:
        """Give the terminal its modes back; for a process that ends without unwinding."""
        if self._input is not None and self._modes is not None:
            termios.tcsetattr(self._input.fileno(), termios.TCSANOW, self._modes)

    def _watch(self, over: int, typed: list[KeyPress]) -> None:
        """Read keys until the other end of `over` is closed."""
        assert self._input is not None
        keyboard = self._input.fileno()
        while over not in select.select([over, keyboard], [], [])[0] and not self._input.closed:
            for press in self._input.read_keys():
                if press.key != Keys.ControlC:
                    typed.append(press)
                elif self.requested:
                    os.kill(os.getpid(), signal.SIGINT)
                else:
                    self._requested.set()
