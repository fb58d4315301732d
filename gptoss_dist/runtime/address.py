"""Where rank 0 listens for the other ranks, and where they find it: at MASTER_ADDR, as torch's own store does."""

from __future__ import annotations

import os
import socket

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def loopback() -> str | None:
    """MASTER_ADDR where it means this machine alone."""
    address = os.environ["MASTER_ADDR"]
    return address if address in _LOOPBACK else None


def address_of_rank_0(rank: int) -> str:
    """What `rank` connects to; rank 0 may not reach itself by the name that the others know it by."""
    return loopback() or ("localhost" if rank == 0 else os.environ["MASTER_ADDR"])


def listen(only_at: str | None, backlog: int) -> socket.socket:
    """A listening socket on a free port of the loopback address `only_at` or, if that is None, of all addresses."""
    if only_at is not None:
        family = socket.AF_INET6 if ":" in only_at else socket.AF_INET
        return socket.create_server((only_at, 0), family=family, backlog=backlog)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog)
    return socket.create_server(("", 0), backlog=backlog)
