from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptoss_dist.runtime.process import process_of


@pytest.fixture
def child(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program whose name looks like what follows names in /proc/PID/stat."""
    program = tmp_path / "a) Z 1 ("
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([program, "600"]) as running:
        yield running
        running.kill()


def test_a_process_is_itself_and_no_other(child):
    mine, other = process_of(), process_of(child.pid)
    assert mine == process_of(os.getpid())
    assert mine.lives()
    assert other.lives()
    assert (other.boot, other.namespace) == (mine.boot, mine.namespace)
    assert other.started >= mine.started


def test_one_that_was_killed_is_dead_before_and_after_its_parent_asks(child):
    other = process_of(child.pid)
    child.kill()
    deadline = time.monotonic() + 30
    while other.lives():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert Path(f"/proc/{child.pid}").exists()
    child.wait()
    assert not other.lives()
    assert process_of(child.pid) is None


def test_another_process_of_the_same_number_is_another():
    mine = process_of()
    assert not dataclasses.replace(mine, started=mine.started + 1).lives()
