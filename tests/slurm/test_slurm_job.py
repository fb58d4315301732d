"""`gptoss slurm … slurm.submit=true` on a real SLURM: what it renders runs, whatever starts the ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster

pytestmark = pytest.mark.slurm

RUN = ("generate", "model=tiny", "cluster.device=cpu", "generation=greedy", "prompt=What is the capital of France?")


def gptoss_slurm(cluster: Cluster, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return cluster.run("env", f"PATH={search}", sys.executable, "-m", "gptoss_dist", "slurm", *words, folder=folder)


def submit(cluster: Cluster, folder: Path, *words: str) -> str:
    done = gptoss_slurm(cluster, folder, *RUN, *words, "slurm.submit=true", "--json")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["job"])


@pytest.mark.parametrize(
    ("launcher", "words"),
    [
        ("accelerate", ("plan=dp_tp", "plan.dp=2", "plan.tp=2", "slurm.nodes=2", "slurm.ranks_per_node=2")),
        ("srun", ("plan=tp", "plan.tp=2")),
        ("torchrun", ("plan=tp", "plan.tp=2", "slurm.nodes=2", "slurm.gpus_per_node=1")),
    ],
)
def test_a_submitted_run_answers(cluster: Cluster, tmp_path: Path, launcher: str, words: tuple[str, ...]):
    job = submit(cluster, tmp_path, f"slurm.launcher={launcher}", *words)
    state = cluster.finish(job, timeout_s=400)
    logs = "\n".join(path.read_text() for path in sorted(tmp_path.glob("logs/**/*")) if path.is_file())
    assert state == ("COMPLETED", "0:0"), logs
    assert "final: The capital of France is Paris." in logs


def test_a_word_of_it_that_is_wrong_is_said_before_anything_is_submitted(cluster: Cluster, tmp_path: Path):
    done = gptoss_slurm(cluster, tmp_path, *RUN, "plan=tq", "slurm.submit=true")
    assert done.returncode == 2
    assert done.stderr.startswith("error: plan=tq: no such choice.")
    assert not (tmp_path / "logs").exists()


def test_what_sbatch_refuses_is_said(cluster: Cluster, tmp_path: Path):
    done = gptoss_slurm(cluster, tmp_path, *RUN, "plan=tp", "plan.tp=2", "slurm.partition=nosuch", "slurm.submit=true")
    assert done.returncode == 1
    assert "invalid partition specified: nosuch" in done.stderr
    assert "Traceback" not in done.stderr


def test_asking_when_it_would_run_submits_nothing(cluster: Cluster, tmp_path: Path):
    words = ("plan=tp", "plan.tp=2", "slurm.submit=true", "slurm.test_only=true")
    done = gptoss_slurm(cluster, tmp_path, *RUN, *words)
    assert done.returncode == 0, done.stderr
    assert "to start at" in done.stdout
    assert cluster.run("squeue", "--noheader", folder=tmp_path).stdout == ""
