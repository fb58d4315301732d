from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptoss_dist.model import tiny

CHILD = """
import os, sys, time
from pathlib import Path
from gptoss_dist.model.tiny_process import end_with_parent

end_with_parent()
Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(600)
"""
PARENT = """
import signal, sys
from gptoss_dist.model import tiny

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started without it
try:
    tiny._run([sys.executable, "-c", sys.argv[1], sys.argv[2]])
except KeyboardInterrupt:
    sys.exit(130)
"""


def is_running(pid: int) -> bool:
    """Whether there is such a process that is no zombie; in a container nobody may collect it."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' /proc")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_training_ends_with_the_process_that_wants_it(tmp_path: Path, signum: signal.Signals) -> None:
    sign = tmp_path / "child"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD, str(sign)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not sign.exists() or not sign.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child = int(sign.read_text())
    os.killpg(parent.pid, signum)  # as a terminal does: to all of the group
    _, said = parent.communicate(timeout=60)
    assert said == ""
    while is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_training_that_is_done_ends_with_its_own_status() -> None:
    program = (
        "from gptoss_dist.model.tiny_process import end_with_parent; end_with_parent(); import time; time.sleep(0.5)"
    )
    assert tiny._run([sys.executable, "-c", program]) == 0
