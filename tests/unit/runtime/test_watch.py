"""One rank alone; several ranks are in tests/multi/test_runtime_watch.py."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys

import pytest

from gptoss_dist.errors import CheckpointError
from gptoss_dist.runtime.watch import guard


def test_work_that_ends_well_leaves_nothing_behind(capsys):
    before = signal.getsignal(signal.SIGINT)
    with guard(None) as watch:
        assert watch.store is None
        assert watch.cause is None
    assert not watch.stop_requested.is_set()
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr() == ("", "")


def test_a_known_error_is_said_without_a_traceback(capsys):
    with pytest.raises(SystemExit) as end, guard(None):
        raise CheckpointError("model-00001.safetensors is torn")
    assert end.value.code == 1
    assert capsys.readouterr().err == "error: model-00001.safetensors is torn\n"


def test_a_defect_keeps_its_traceback(capsys):
    with pytest.raises(SystemExit) as end, guard(None):
        raise ZeroDivisionError("a defect")
    assert end.value.code == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_leaving_by_exit_0_is_no_failure(capsys):
    with pytest.raises(SystemExit) as end, guard(None):
        raise SystemExit(0)
    assert end.value.code == 0
    assert capsys.readouterr().err == ""


def test_a_keyboard_interrupt_that_is_raised(capsys):
    with pytest.raises(SystemExit) as end, guard(None):
        raise KeyboardInterrupt
    assert end.value.code == 130
    assert capsys.readouterr().err == "stopped by SIGINT\n"


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_asks_the_work_to_stop(capsys, signum: signal.Signals, status: int):
    called = []

    def work() -> None:
        with guard(None) as watch:
            watch.on_stop(lambda: called.append(watch.cause))
            os.kill(os.getpid(), signum)
            assert watch.stop_requested.wait(10)

    with pytest.raises(SystemExit) as end:
        work()
    assert end.value.code == status
    assert [cause.status for cause in called] == [status]
    assert capsys.readouterr().err == f"stopped by {signum.name}\n"


def test_a_callback_that_fails_is_shown_and_the_next_still_called(capsys):
    called = []

    def work() -> None:
        with guard(None) as watch:
            watch.on_stop(lambda: called[0])
            watch.on_stop(lambda: called.append("second"))
            raise CheckpointError("torn")

    with pytest.raises(SystemExit):
        work()
    assert called == ["second"]
    assert "IndexError" in capsys.readouterr().err


def test_work_that_does_not_look_is_ended_after_the_grace():
    code = (
        "import os, signal, time\n"
        "from gptoss_dist.runtime.watch import guard\n"
        "with guard(None, grace_s=0.5):\n"
        "    print('working', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (143, "working\n", "stopped by SIGTERM\n")


STUCK = """
import os, signal, time
from gptoss_dist.runtime.watch import guard
with guard(None, grace_s=0.1):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""


def test_a_standard_output_that_was_closed_before_the_start_does_not_keep_the_end():
    command = ["bash", "-c", f"{shlex.quote(sys.executable)} -c {shlex.quote(STUCK)} >&-"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (143, "stopped by SIGTERM\n")
