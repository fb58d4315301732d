from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLAN = ("plan", "model=tiny", "plan=tp", "plan.tp=2")
HELP = ("--help",)


def run(words: tuple[str, ...], redirection: str, **extra: str) -> subprocess.CompletedProcess[str]:
    command = f'"{sys.executable}" -m gptoss_dist {" ".join(words)} {redirection}'
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **extra}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environ, timeout=60, check=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux' full device")
@pytest.mark.parametrize("words", [PLAN, HELP])
def test_a_full_disk_is_one_line(words):
    done = run(words, ">/dev/full")
    assert (done.returncode, done.stderr) == (
        1,
        "error: The standard output cannot be written: No space left on device.\n",
    )


@pytest.mark.parametrize("words", [PLAN, HELP])
def test_an_output_that_was_closed_is_one_line(words):
    done = run(words, ">&-")
    assert done.returncode == 1
    assert done.stderr == "error: There is no standard output: it was closed before the start.\n"


def test_nothing_at_all_to_write_to_is_a_status():
    assert run(PLAN, ">&- 2>&-").returncode == 1


def test_without_a_standard_error_nothing_is_said_on_standard_output():
    done = run(("generate", "nosuch=1"), "2>&-")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux' full device")
@pytest.mark.parametrize(
    ("words", "status"),
    [(PLAN, 0), (("generate", "nosuch=1"), 2), (("synth", "job.layers=2", "job.experts=4", "--out"), 0)],
)
def test_a_standard_error_on_a_full_disk_ends_nothing(words, status, tmp_path):
    done = run((*words, str(tmp_path / "out")) if words[-1] == "--out" else words, "2>/dev/full")
    assert done.returncode == status
    assert bool(done.stdout) == (status == 0)


def test_a_reader_that_left_is_one_line():
    done = run(PLAN, "| true; exit ${PIPESTATUS[0]}")
    assert done.returncode in (0, 141)  # true may end after the few lines were written
    assert done.stderr in ("", "error: Whoever read the standard output closed it before the end.\n")


def test_what_the_encoding_lacks_is_written_by_its_number():
    done = run(PLAN, "", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("tiny by plan=tp: dp=1 \\xd7 tp=2")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "UTF8"])
def test_json_is_json_in_any_encoding(encoding):
    done = run(("plan", "--json", "job.ranks=2", "plan=auto"), "", PYTHONIOENCODING=encoding)
    found = json.loads(done.stdout)
    assert (found["plan"], found["reason"]) == ("tp", "2 ranks share the 8 key-value heads evenly")
