"""Messages between rank 0 and some other ranks, which come and go while both sides work.

Each of those ranks has a TCP connection to rank 0, on one machine as over several. Nobody ever waits for the other end
to read: what the kernel does not take at once is kept here, and goes at the next call. So two ends that write
much at once do not stop each other, and a rank that is busy for long holds nobody up. Messages of one rank arrive
in the order in which they were sent.

Messages are pickled: who could send one could run anything. `open_channels` lets nobody else in.
"""

from __future__ import annotations

import pickle
import selectors
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gptoss_dist.errors import RankError
from gptoss_dist.runtime.line import keep_alive

_BETTER_CAUSE_SECONDS = 1.0
"""Between the end of a connection and the error: `guard` tells sooner why the rank at its other end is gone."""
_SIZE = struct.Struct("<Q")
"""Before each message: its bytes."""
_READ_BYTES = 1 << 20


@dataclass
class _End:
    """One connection."""

    peer: int
    socket: socket.socket
    unsent: bytearray = field(default_factory=bytearray)
    unread: bytearray = field(default_factory=bytearray)
    gone_at: float = float("inf")
    """When the other end was found to be gone; `time.monotonic`."""

    @property
    def is_gone(self) -> bool:
        """Whether the other end is, and all that it sent was received."""
        return self.gone_at < float("inf")

    def send(self) -> None:
        """As much as the kernel takes."""
        try:
            while self.unsent:
                del self.unsent[: self.socket.send(self.unsent)]
        except BlockingIOError:
            pass
        except OSError:  # reading tells that it is gone, after the last message
            self.unsent.clear()

    def receive(self) -> list[Any]:
        """The messages that are whole, after some of what the kernel has."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.gone_at = time.monotonic()
        self.unread += data
        found = []
        while len(self.unread) >= _SIZE.size:
            end = _SIZE.size + _SIZE.unpack_from(self.unread)[0]
            if len(self.unread) < end:
                break
            found.append(pickle.loads(self.unread[_SIZE.size : end]))
            del self.unread[:end]
        return found


class Channels:
    """This rank's connections: those of rank 0 to several ranks, or that of one of them to rank 0."""

    def __init__(self, rank: int, connections: Mapping[int, socket.socket]) -> None:
        """`connections` by the rank at the other end."""
        self._rank = rank
        self._selector = selectors.DefaultSelector()
        self._gone: list[_End] = []
        self._ends = {peer: _End(peer, connection) for peer, connection in connections.items()}
        for end in self._ends.values():
            end.socket.setblocking(False)
            end.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(end.socket)
            self._selector.register(end.socket, selectors.EVENT_READ, end)

    def send(self, peer: int, message: Any) -> None:
        """Hand `message` over; it has arrived when the other end has received it. To a rank that is gone it is lost."""
        end = self._ends[peer]
        if end.is_gone:
            return
        content = pickle.dumps(message)
        end.unsent += _SIZE.pack(len(content)) + content
        end.send()
        self._watch(end)

    def receive(self, wait_s: float = 0.0) -> list[tuple[int, Any]]:
        """(rank, message) of all that have arrived whole; if there is none, wait up to `wait_s` seconds for some.

        Raises RankError about a second after a rank has ended.
        """
        until = time.monotonic() + wait_s if wait_s else 0.0
        while True:
            found = self._exchange(wait_s)
            if found or not wait_s:
                return found
            wait_s = max(0.0, until - time.monotonic())

    def flush(self) -> None:
        """Wait until the kernel has taken all that was sent; the other ends must be receiving."""
        for end in self._ends.values():
            if end.unsent and not end.is_gone:
                end.socket.setblocking(True)
                end.send()
                end.socket.setblocking(False)
                self._watch(end)

    def close(self) -> None:
        """End the connections."""
        self._selector.close()
        for end in self._ends.values():
            end.socket.close()

    def _exchange(self, wait_s: float) -> list[tuple[int, Any]]:
        """Send and receive what can be; wait for a first time that there is something to do."""
        found = []
        for key, ready in self._selector.select(wait_s and min(wait_s, _BETTER_CAUSE_SECONDS)):
            end: _End = key.data
            if ready & selectors.EVENT_WRITE:
                end.send()
            if ready & selectors.EVENT_READ:
                found += [(end.peer, message) for message in end.receive()]
            self._watch(end)
        if self._gone and time.monotonic() - self._gone[0].gone_at >= _BETTER_CAUSE_SECONDS:
            raise RankError(
                f"rank {self._gone[0].peer} has ended, and rank {self._rank} works with it: what it printed last says "
                "why. Start all ranks again"
            )
        return found

    def _watch(self, end: _End) -> None:
        """For what can be done at an end now."""
        if end.is_gone:
            self._selector.unregister(end.socket)
            self._gone.append(end)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if end.unsent else 0)
        if self._selector.get_key(end.socket).events != wanted:
            self._selector.modify(end.socket, wanted, end)
