"""How rank 0 and some other ranks come to have channels: each of those connects, and both ends show who they are.

    rank 0     listens ── where, and two secrets, through the process group ──► all ranks
    a peer     connects ── its secret, its rank ──► rank 0 ── its own secret ──► the peer

Whoever does not know the first secret is sent away, and whoever does not show the second is not believed.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import selectors
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptoss_dist.errors import RankError
from gptoss_dist.runtime.address import address_of_rank_0, listen, loopback
from gptoss_dist.runtime.channels import Channels

_JOIN_SECONDS = 60.0
_SECRET_BYTES = 32
_HELLO = struct.Struct(f"<{_SECRET_BYTES}sI")
"""What a rank says first: the secret, and which rank it is."""
_BACKLOG = 128
"""More than there are leaders: strangers may be among those who come."""


@dataclass(frozen=True)
class _Door:
    """Where rank 0 listens, and what both ends of a connection show."""

    port: int
    theirs: bytes = field(default_factory=lambda: secrets.token_bytes(_SECRET_BYTES))
    mine: bytes = field(default_factory=lambda: secrets.token_bytes(_SECRET_BYTES))
    """Rank 0's own."""


def open_channels(
    rank: int, peers: Sequence[int], broadcast: Callable[[Any], Any], join_s: float = _JOIN_SECONDS
) -> Channels | None:
    """Connect `peers` with rank 0: the channels on these ranks, None on all others. Collective.

    `broadcast` gives rank 0's value on every rank. Raises RankError on a rank that does not reach rank 0, and on rank 0
    if one of the others does not come within `join_s` seconds.
    """
    if rank != 0:
        door: _Door = broadcast(None)
        return Channels(rank, {0: _connect(rank, door, join_s)}) if rank in peers else None
    with listen(loopback(), _BACKLOG) as listener:
        door = broadcast(_Door(listener.getsockname()[1]))
        return Channels(rank, _accept(listener, door, peers, join_s))


def _connect(rank: int, door: _Door, join_s: float) -> socket.socket:
    """A connection to rank 0 whose two ends know each other."""
    host = address_of_rank_0(rank)
    with contextlib.ExitStack() as stack:
        try:
            connection = stack.enter_context(socket.create_connection((host, door.port), timeout=join_s))
            connection.sendall(_HELLO.pack(door.theirs, rank))
            shown = b""
            while len(shown) < _SECRET_BYTES and (more := connection.recv(_SECRET_BYTES - len(shown))):
                shown += more
        except OSError as error:
            raise RankError(
                f"rank {rank} could not reach rank 0 at {host} within {join_s:.0f} s ({error}): does a firewall "
                "allow connections between the machines on any port?"
            ) from error
        if not hmac.compare_digest(shown, door.mine):
            raise RankError(f"rank {rank} found another program on port {door.port} of {host}. Start all ranks again")
        stack.pop_all()  # it stays open
    return connection


def _accept(listener: socket.socket, door: _Door, peers: Sequence[int], join_s: float) -> dict[int, socket.socket]:
    """The connections of `peers`; whoever else comes is sent away, and keeps nobody waiting."""
    seen: list[socket.socket] = []
    joined: dict[int, socket.socket] = {}
    deadline = time.monotonic() + join_s
    listener.setblocking(False)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            while len(joined) < len(peers):
                if (left := deadline - time.monotonic()) <= 0:
                    missing = ", ".join(str(peer) for peer in peers if peer not in joined)
                    raise RankError(
                        f"rank {missing} did not connect with rank 0 within {join_s:.0f} s: was it started?"
                    )
                for key, _ in selector.select(left):
                    if key.fileobj is listener:
                        _let_in(listener, selector, seen)
                    elif key.data.has_spoken():
                        selector.unregister(key.fileobj)
                        if (peer := key.data.peer(door, peers)) is not None and peer not in joined:
                            joined[peer] = key.data.welcome(door)
    finally:
        kept = joined.values() if len(joined) == len(peers) else ()
        for connection in seen:
            if connection not in kept:
                connection.close()
    return joined


def _let_in(listener: socket.socket, selector: selectors.BaseSelector, seen: list[socket.socket]) -> None:
    with contextlib.suppress(OSError):  # gone between select and accept
        connection, _ = listener.accept()
        connection.setblocking(False)
        seen.append(connection)
        selector.register(connection, selectors.EVENT_READ, _Stranger(connection))


class _Stranger:
    """Who has connected, and what it has said."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket, self._said = connection, b""

    def has_spoken(self) -> bool:
        """Whether nothing more is waited for, after what there is to hear now."""
        try:
            more = self._socket.recv(_HELLO.size - len(self._said))
        except BlockingIOError:
            return False
        except OSError:
            return True
        self._said += more
        return not more or len(self._said) == _HELLO.size

    def peer(self, door: _Door, peers: Sequence[int]) -> int | None:
        """The rank that knows the secret; None for anybody else."""
        if len(self._said) != _HELLO.size:
            return None
        shown, rank = _HELLO.unpack(self._said)
        return rank if hmac.compare_digest(shown, door.theirs) and rank in peers else None

    def welcome(self, door: _Door) -> socket.socket:
        """Show it that this is rank 0."""
        self._socket.setblocking(True)
        self._socket.sendall(door.mine)
        return self._socket
