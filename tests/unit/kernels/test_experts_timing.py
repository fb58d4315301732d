"""The script that times the expert kernels on a GPU runs through on a CPU, with every candidate giving the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

SCRIPT = Path(__file__).parents[2] / "gpu" / "time_experts.py"


def test_every_candidate_runs_and_agrees():
    from gptoss_dist.kernels.experts_tiles import candidates

    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(SCRIPT), "--dry-run"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert len(rows) == len(candidates(1)) + len(candidates(9)), done.stdout
    assert all(row["difference"] < 1e-5 for row in rows)
    # 8 of 8 experts, 2 groups: 4 of them × (2·64 rows × 2 groups + 64 rows × 2 groups) × 17 bytes
    assert rows[0]["bytes"] == 4 * (128 * 2 + 64 * 2) * 17
