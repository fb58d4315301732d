"""The script that times the attention kernels runs through, at toy sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

SCRIPT = Path(__file__).parents[2] / "gpu" / "time_attention.py"


def test_a_dry_run_times_every_case_and_ends_with_json():
    environ = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(SCRIPT), "--dry-run", "--kv-heads", "1"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert len(rows) == 2 * (2 * 3 + 2)
    assert all(row["us"] > 0 for row in rows), done.stdout
    assert {(row["kind"], row["layer"]) for row in rows} == {
        (kind, layer) for kind in ("decode", "prefill") for layer in ("full", "sliding")
    }
