"""Programs in a terminal of their own, ended for certain."""

from __future__ import annotations

import signal
import time

import pexpect

_HANGUP_S = 20.0


def end(program: pexpect.spawn) -> None:
    """Hang up, and kill what stays: pexpect itself gives up a tenth of a second after each signal."""
    if program.isalive():
        program.kill(signal.SIGHUP)
        deadline = time.monotonic() + _HANGUP_S
        while program.isalive() and time.monotonic() < deadline:
            time.sleep(0.05)
    if program.isalive():
        program.kill(signal.SIGKILL)
        while program.isalive():  # pytest's own time limit bounds it
            time.sleep(0.05)
    program.close()
