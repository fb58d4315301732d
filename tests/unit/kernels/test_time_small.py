"""The timing program of the small kernels, tried where there is no GPU: every case runs and the line is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "gpu" / "time_small.py"


def last_line(command):
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_kernel_has_its_figures():
    line = last_line([sys.executable, str(SCRIPT), "--dry-run"])
    assert line["dry_run"] is True
    assert {
        "norm",
        "add_routes_norm",
        "rotary",
        "router",
        "norm_route",
        "sample",
        "embed",
        "project_qkv",
        "project_out",
    } < set(line["kernels"])
    assert all(figures["3"]["reference"] > 0 for figures in line["kernels"].values())


@pytest.mark.multi
def test_ranks_time_the_all_reduce():
    start = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    line = last_line([*start, str(SCRIPT), "--dry-run"])
    assert line["ranks"] == 2
    assert set(line["all_reduce"]) == {"process_group"}
