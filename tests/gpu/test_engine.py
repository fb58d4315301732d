"""The engine's step at gpt-oss-120b's own widths on one GPU; `compare_engine.py` does it for every plan on several."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """Two layers, a full and a sliding one, with the vocabulary and the experts of 120b."""
    from gptoss_dist.model.synth import synthesize

    folder = tmp_path_factory.mktemp("synth") / "model"
    synthesize("120b", folder, layers=2)
    return str(folder)


def last_line(*words: str) -> dict:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, timeout=280)
    assert done.stdout.strip(), done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    found["status"] = done.returncode
    return found


def test_logits_are_those_of_the_models_own_forward_and_graphs_change_nothing(checkpoint):
    found = last_line(str(HERE / "compare_engine.py"), "1", "single", "--checkpoint", checkpoint)
    (plan,) = found["compare_engine"]
    assert plan["step"] in ("cuda", "triton")
    assert plan["graphs_equal"], plan
    assert plan["holds"], plan
    assert found["status"] == 0


def test_a_step_is_one_graph_of_some_ten_kernels_a_layer(checkpoint):
    found = last_line(str(HERE / "profile_step.py"), "--checkpoint", checkpoint, "--batches", "1", "--context", "200")
    (batch,) = found["profile_step"]
    assert 0 < batch["launches"] <= 14 * batch["layers"] + 40, batch["kernels"]
