"""The place on rank 0 to which every rank keeps a connection, and which decides what ended the run.

A connection that closes without a goodbye is a rank that died. The first cause wins and is told to all ranks, with the
rank that shall say it, so that it is said once.
"""

from __future__ import annotations

import secrets
import selectors
import threading
import time

from gptoss_dist.runtime.address import listen
from gptoss_dist.runtime.cause import Cause
from gptoss_dist.runtime.line import Line

_TICK_SECONDS = 0.5


class Hub:
    """A listening socket and one daemon thread; `port` and `token` are what the ranks need to join."""

    def __init__(self, world_size: int, *, only_at: str | None, join_seconds: float) -> None:
        """Listen on a free port, of the loopback address `only_at` or, if that is None, of all addresses.

        A rank that has not joined after `join_seconds` counts as vanished.
        """
        self._world_size = world_size
        self._join_deadline = time.monotonic() + join_seconds
        self._join_seconds = join_seconds
        self._listener = listen(only_at, world_size)
        self.port: int = self._listener.getsockname()[1]
        self.token = secrets.token_hex(16)
        self._strangers: set[Line] = set()
        self._joined: dict[int, Line] = {}
        self._seen: set[int] = set()
        self._left: set[int] = set()
        self._cause: Cause | None = None
        self._speaker: int | None = None  # None also while nobody is there who could say it
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="gptoss-hub", daemon=True)
        self._thread.start()

    @property
    def cause(self) -> Cause | None:
        """What was decided on; None while nothing went wrong."""
        return self._cause

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until every rank has left, or has gone after a cause; False when `seconds` ran out first."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._is_over():
            for key, _ in self._selector.select(_TICK_SECONDS):
                if isinstance(key.fileobj, Line):
                    self._read(key.fileobj)
                else:
                    self._accept()
            self._look_for_missing()
        self._selector.close()
        self._listener.close()
        for line in [*self._joined.values(), *self._strangers]:
            line.close()

    def _is_over(self) -> bool:
        if len(self._left) == self._world_size:
            return True
        nobody_is_late = len(self._seen) == self._world_size or time.monotonic() > self._join_deadline
        return self._cause is not None and self._joined.keys() <= {0} and nobody_is_late

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # gone between select and accept
            return
        line = Line(connection)
        self._strangers.add(line)
        self._selector.register(line, selectors.EVENT_READ)

    def _read(self, line: Line) -> None:
        messages = line.receive()
        if messages is None:
            self._drop(line)
            return
        for message in messages:
            rank = self._rank_of(line)
            if rank is None:
                self._welcome(line, message)
            elif "cause" in message:
                self._decide(Cause.from_dict(message["cause"]), speaker=rank)
            elif "left" in message:
                self._left.add(rank)

    def _rank_of(self, line: Line) -> int | None:
        return next((rank for rank, known in self._joined.items() if known is line), None)

    def _welcome(self, line: Line, message: dict[str, object]) -> None:
        rank = message.get("rank")
        if message.get("token") != self.token or not isinstance(rank, int) or rank in self._seen:
            self._drop(line)
            return
        self._strangers.discard(line)
        self._joined[rank] = line
        self._seen.add(rank)
        if self._cause is not None:
            self._speaker = rank if self._speaker is None else self._speaker
            line.send({"cause": self._cause.to_dict(), "speaker": self._speaker})

    def _drop(self, line: Line) -> None:
        self._selector.unregister(line)
        line.close()
        self._strangers.discard(line)
        rank = self._rank_of(line)
        if rank is None:
            return
        del self._joined[rank]
        if rank not in self._left:
            self._decide(Cause.vanished(rank), speaker=min(self._joined, default=None))

    def _look_for_missing(self) -> None:
        if self._cause is None and len(self._seen) < self._world_size and time.monotonic() > self._join_deadline:
            rank = min(set(range(self._world_size)) - self._seen)
            why = f"it did not join within {self._join_seconds:.0f} s: was it started, and can it reach rank 0?"
            self._decide(Cause.vanished(rank, why), speaker=min(self._joined, default=None))

    def _decide(self, cause: Cause, *, speaker: int | None) -> None:
        if self._cause is not None:
            return
        self._cause, self._speaker = cause, speaker
        for line in self._joined.values():
            line.send({"cause": cause.to_dict(), "speaker": speaker})
