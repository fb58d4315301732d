"""Which process a rank is, so that the other ranks of its machine see whether it still lives. Linux alone tells."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_ENDED = ("Z", "X")
"""States of what has ended and only waits for its parent to ask how."""
_START_TIME = 19
"""Place of the start time behind the program's name in /proc/PID/stat, where the state has place 0."""


@dataclass(frozen=True)
class Process:
    """One process among all that ever ran: its number is given again, but not with the same start."""

    boot: str
    """What no other machine has, nor this one after it is started again."""
    namespace: str
    """The PID namespace in which `pid` is its number; containers have their own."""
    pid: int
    started: int
    """Clock ticks after the machine's start."""

    def lives(self) -> bool:
        """Whether it has not ended, asked in its own namespace. Raises OSError where that cannot be told."""
        try:
            state, started = _state(self.pid)
        except (FileNotFoundError, ProcessLookupError):
            return False
        return started == self.started and state not in _ENDED


def process_of(pid: int | None = None) -> Process | None:
    """This process, or another one; None where /proc does not tell."""
    entry: int | str = "self" if pid is None else pid  # /proc may be another namespace's, with other numbers
    try:
        namespace = str(Path(f"/proc/{entry}/ns/pid").readlink())
        boot = _BOOT.read_text(encoding="ascii").strip()
        return Process(boot, namespace, os.getpid() if pid is None else pid, _state(entry)[1])
    except OSError:
        return None


def _state(entry: int | str) -> tuple[str, int]:
    """(state, start time); a program's name may hold anything but what stands behind its last parenthesis."""
    fields = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()
    return fields[0].decode(), int(fields[_START_TIME])
