from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from gptoss_dist.launcher.spawn import _status, threads_per_rank


def test_every_rank_has_a_thread():
    cores = len(os.sched_getaffinity(0))
    assert threads_per_rank(1) == cores
    assert threads_per_rank(cores) == 1
    assert threads_per_rank(1000) == 1


@pytest.mark.parametrize(
    ("exit_codes", "status"),
    [
        ({1: 2, 0: 2}, 2),
        ({1: 2, 0: 143}, 2),
        ({1: 2, 0: -signal.SIGTERM}, 2),
        ({1: -signal.SIGKILL, 0: 1}, 1),
        ({0: 143, 1: 143}, 143),
        ({0: 130}, 130),
        ({0: -signal.SIGTERM}, 143),
    ],
)
def test_one_status_for_all_ranks(capsys, exit_codes: dict[int, int], status: int):
    assert _status(exit_codes) == status
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("others", [{}, {0: 143}, {0: -signal.SIGTERM}])
def test_a_rank_that_could_not_say_it_is_named(capsys, others: dict[int, int]):
    assert _status({2: -signal.SIGSEGV, **others}) == 1
    assert capsys.readouterr().err == "rank 2: ended by SIGSEGV\n"


def test_importing_the_launcher_imports_no_torch():
    code = (
        "import sys, gptoss_dist.launcher.command, gptoss_dist.launcher.env, gptoss_dist.launcher.spawn;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
