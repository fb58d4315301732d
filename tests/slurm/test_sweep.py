"""launch/sweep.py: Hydra's --multirun, here and through a real SLURM by submitit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster

ROOT = Path(__file__).parents[2]
SWEEP = (sys.executable, str(ROOT / "launch" / "sweep.py"), "--multirun")
RUN = ("job=generate", "model=tiny", "cluster.device=cpu", "generation=greedy", "plan=tp", "plan.tp=2")
SLURM = ("hydra/launcher=submitit_slurm", "hydra.launcher.tasks_per_node=2", "hydra.launcher.cpus_per_task=1")


@pytest.mark.slurm
def test_each_run_of_a_sweep_is_a_job(cluster: Cluster, tmp_path: Path):
    prompts = 'prompt="What is the capital of France?","What is 2 + 2?"'
    keys = ("hydra.launcher.mem_gb=2", "hydra.launcher.timeout_min=4")
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = cluster.run("env", f"PATH={search}", *SWEEP, *SLURM, *keys, *RUN, prompts, folder=tmp_path, timeout_s=250)
    logs = [path.read_text() for path in sorted(tmp_path.glob("multirun/**/*_0_log.out"))]
    errors = "\n".join(path.read_text() for path in tmp_path.glob("multirun/**/*_log.err"))
    assert done.returncode == 0, done.stderr + errors
    assert len(logs) == 2
    assert "final: The capital of France is Paris." in logs[0]
    assert "final: 2 + 2 = 4." in logs[1]


def test_runs_follow_each_other_here_and_a_wrong_one_is_said(tmp_path: Path):
    words = ("job=plan", "model=gpt_oss_20b", "plan=tp", "plan.tp=1,2", "job.context=1000,-1")
    done = subprocess.run([*SWEEP, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert [f"dp=1 × tp={tp}," in done.stdout for tp in (1, 2)] == [True, True]
    assert done.stderr.count("error: job.context=-1: must be 1 or more.") == 2
    assert "exit status 2: gptoss job=plan" in done.stderr
    assert "Traceback" not in done.stderr
