"""Ports that a test may listen on, and that stay free until it does.

A port that the system picks is one of those that it gives to anybody's next connection: between picking and listening
another test may hold it. So ports are taken from below that range and above those of SLURM jobs, one after the other,
and every worker of pytest has a part of its own.
"""

from __future__ import annotations

import itertools
import os
import socket

_FIRST, _END, _PARTS = 26000, 32768, 8
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PARTS
_PORTS = (_END - _FIRST) // _PARTS
_counted = itertools.count(os.getpid())


def free_port() -> int:
    """One that nobody listens on."""
    for _ in range(_PORTS):
        port = _FIRST + _worker * _PORTS + next(_counted) % _PORTS
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"all ports of worker {_worker} are in use")
