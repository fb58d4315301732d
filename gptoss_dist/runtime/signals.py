"""SIGINT and SIGTERM told to a thread at once, also while the main thread is stuck inside a collective; or, in a
person's own script, SIGINT held back while something is done that must not be left in its middle.

Python runs signal handlers in the main thread, between two byte codes: never, while that thread waits in C++. The
byte that the interpreter's C handler writes to the wakeup descriptor arrives whatever the main thread does. (Blocking
the signals and waiting for them in a thread would not do: threads that libraries started earlier still take them, and
child processes would inherit the blocked mask.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_END = b"\0"


class SignalThread:
    """Calls `on_signal(number)` in a daemon thread for every SIGINT and SIGTERM, until `close`.

    Only the main thread may make one; anything else that sets a wakeup descriptor (asyncio's `add_signal_handler`)
    must wait until it is closed.
    """

    def __init__(self, on_signal: Callable[[int], None]) -> None:
        """Replace the handlers of both signals."""
        self._on_signal = on_signal
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._old_descriptor = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._old_handlers = {number: signal.signal(number, _do_nothing) for number in SIGNALS}
        self._is_open = True
        os.register_at_fork(after_in_child=self._forget)
        self._thread = threading.Thread(target=self._run, name="gptoss-signals", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Put the former handlers back and end the thread."""
        self._forget()
        os.write(self._writer, _END)
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def _forget(self) -> None:
        """Also in a forked child: its signals are its own, and the pipe is not."""
        if not self._is_open:
            return
        self._is_open = False
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_descriptor)

    def _run(self) -> None:
        while (byte := os.read(self._reader, 1)) != _END:
            if byte[0] in SIGNALS:
                self._on_signal(byte[0])


@contextlib.contextmanager
def interrupted_at_its_end() -> Iterator[None]:
    """The KeyboardInterrupt of a SIGINT comes at the end of the block and not within it; that of a second one at once.

    Where another thread than the main one is here, or SIGINT means something else than Python's default, it is left
    as it is.
    """
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = threading.Event()

    def note(_signum: int, _frame: FrameType | None) -> None:
        if came.is_set():
            raise KeyboardInterrupt
        came.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came.is_set():
        raise KeyboardInterrupt


def _do_nothing(_signum: int, _frame: FrameType | None) -> None:
    """Being set keeps the signal from ending the process; the wakeup descriptor does the rest."""
