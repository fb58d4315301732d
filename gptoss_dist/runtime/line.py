"""One JSON object a line over a TCP connection that notices by itself when the other end is gone."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from typing import Any

_SEND_SECONDS = 2
_IDLE_SECONDS, _INTERVAL_SECONDS, _PROBES = 5, 2, 4
"""The kernel probes a silent connection and ends it after about 13 s without an answer: a machine or network lost.

Processes that end, also by kill -9, are noticed at once: their kernel closes the connection. Probing in the kernel
needs no thread of ours, so a rank that is busy for minutes inside one call is not taken for dead.
"""

_MOST_BYTES = 1 << 20
"""Of one object: much more than a cause ever is."""


class Line:
    """A connection that sends and receives small objects."""

    def __init__(self, connection: socket.socket) -> None:
        """Take over a connected socket."""
        self._socket = connection
        self._pending = b""
        connection.settimeout(None)
        # The kernel's own limit for sending: Python's would make the receiving thread's waits end too.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_SECONDS, 0))
        keep_alive(connection)
        _set_where_known(connection, "TCP_USER_TIMEOUT", 1000 * (_IDLE_SECONDS + _INTERVAL_SECONDS * _PROBES))

    def fileno(self) -> int:
        """For selectors."""
        return self._socket.fileno()

    def send(self, message: dict[str, Any]) -> bool:
        """Whether the object could be handed to the kernel."""
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self) -> list[dict[str, Any]] | None:
        """Wait for data and return the objects complete so far; None when the other end is gone, or is none of ours.

        A port scanner, say, whatever it sends: it must neither end the thread that reads here nor fill the memory.
        """
        try:
            data = self._socket.recv(65536)
        except OSError:
            return None
        if not data:
            return None
        *lines, self._pending = (self._pending + data).split(b"\n")
        try:
            found = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            return None
        ours = len(self._pending) <= _MOST_BYTES and all(isinstance(one, dict) for one in found)
        return found if ours else None

    def close(self) -> None:
        """End the connection; also wakes a thread that waits in `receive`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def keep_alive(connection: socket.socket) -> None:
    """Ask the kernel to probe the other end while nothing is sent."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    _set_where_known(connection, "TCP_KEEPIDLE", _IDLE_SECONDS)
    _set_where_known(connection, "TCP_KEEPINTVL", _INTERVAL_SECONDS)
    _set_where_known(connection, "TCP_KEEPCNT", _PROBES)


def _set_where_known(connection: socket.socket, option: str, value: int) -> None:
    if hasattr(socket, option):  # macOS lacks some
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
