"""What the user types. On a terminal with history and several lines; else one message a line of standard input."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from gptoss_dist.cache import cache_folder
from gptoss_dist.chat.interrupts import Interrupted

_HISTORY = "chat-history"
_HEARTBEAT_S = 0.5


class Keyboard:
    """Reads in a thread of its own, so that whoever waits can do something meanwhile."""

    def __init__(self, idle: Callable[[], None]) -> None:
        """`idle` is called in the reader's stead, from the thread that waits, about twice a second."""
        self._idle = idle
        self._session: PromptSession[str] | None = _session() if sys.stdin is not None and sys.stdin.isatty() else None

    def read(self, label: str) -> str | None:
        """What was typed; None at the end of the input (Ctrl-D). Raises Interrupted at Ctrl-C."""
        typed: queue.Queue[str | Interrupted | None] = queue.Queue()
        threading.Thread(target=lambda: typed.put(self._line(label)), name="gptoss-keyboard", daemon=True).start()
        while True:
            try:
                line = typed.get(timeout=_HEARTBEAT_S)
            except queue.Empty:
                self._idle()
                continue
            if isinstance(line, Interrupted):
                raise line
            return line

    def _line(self, label: str) -> str | Interrupted | None:
        try:
            if self._session is not None:
                return self._session.prompt(label, handle_sigint=False)
            line = sys.stdin.readline() if sys.stdin is not None else ""
        except (EOFError, OSError, UnicodeDecodeError):
            return None
        except KeyboardInterrupt:
            return Interrupted()
        return line.removesuffix("\n") if line else None


def _session() -> PromptSession[str]:
    """Enter sends; Alt-Enter (Esc, Enter) begins a new line."""
    bindings = KeyBindings()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        history: FileHistory | InMemoryHistory = FileHistory(str(cache_folder() / _HISTORY))
    except OSError:  # a home that cannot be written: the history lives as long as the chat
        history = InMemoryHistory()
    return PromptSession(history=history, key_bindings=bindings, prompt_continuation="… ")
