"""`gptoss doctor` as a person types it, on real ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptoss_dist.model.tiny import tiny_checkpoint

pytestmark = pytest.mark.multi

TWO = ("model=tiny", "plan=tp", "plan.tp=2", "cluster.device=cpu")


def doctor(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gptoss_dist", "doctor", *words]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environ}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=variables, check=False)


def levels(done: subprocess.CompletedProcess[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for one in json.loads(done.stdout.splitlines()[-1])["findings"]:
        found.setdefault(one["about"], set()).add(one["level"])
    return found


def test_two_ranks_that_can_work_together():
    tiny_checkpoint()
    done = doctor(*TWO)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "no errors, no warnings"
    assert any(line.startswith("ok       all-reduce    gloo, 2 ranks: ") for line in lines)
    assert sum(line.startswith("ok       vocabulary") for line in lines) == 1


def test_ranks_that_cannot_form_a_group_are_still_heard():
    done = doctor(*TWO, "--json", GLOO_SOCKET_IFNAME="nosuchlink")
    assert done.returncode == 1
    assert levels(done)["ranks"] == {"error"}
    assert levels(done)["vocabulary"] == {"ok"}
    assert done.stderr.count("1 error, no warnings; a run with these words would fail.") == 1
    assert "Traceback" not in done.stderr.split("torch/distributed")[0]


def test_all_that_is_in_the_way_is_told_at_once(tmp_path: Path):
    words = ("model=gpt_oss_120b", "plan=single", "kernels=hub", "cluster.device=cpu", "--json")
    done = doctor(*words, GPTOSS_CACHE=str(tmp_path), TIKTOKEN_ENCODINGS_BASE=str(tmp_path), HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert {about for about, level in levels(done).items() if "error" in level} == {
        *("hub package", "vocabulary", "weights", "device")
    }
    assert done.stderr.startswith("error: doctor: 4 errors")


def test_a_gpu_that_is_asked_for_and_not_there_is_told_as_a_run_would():
    done = doctor("model=tiny", "plan=single", "cluster.device=cuda", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "error    device        cluster.device=cuda: torch sees no GPU here." in done.stdout


def test_a_staged_folder_that_lost_a_file(tmp_path: Path):
    command = [sys.executable, "-m", "gptoss_dist", "prefetch", "vocab", f"--out={tmp_path}"]
    subprocess.run(command, check=True, capture_output=True)
    (tmp_path / "encodings" / "o200k_base.tiktoken").write_bytes(b"torn")
    done = doctor("model=tiny", "plan=single", f"cluster.staged={tmp_path}")
    assert done.returncode == 1
    assert "o200k_base.tiktoken: 4 bytes, and 3613922 were staged" in done.stdout
    assert f"→ run gptoss prefetch with --out {tmp_path} again" in done.stdout
