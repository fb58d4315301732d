"""The programs that compare and profile the engine on GPUs run here too, at small shapes and without graphs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from gptoss_dist.config import compose_run
from gptoss_dist.session import open_session

FOLDER = Path(__file__).parents[2] / "gpu"


def script(name: str):
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint(random_toy) -> str:
    return str(random_toy)


def test_the_comparison_finds_the_step_right(checkpoint):
    compare = script("compare_engine")
    compare.LENGTHS, compare.PROMPTS, compare.CHUNK, compare.GREEDY = (80, 20), (70, 9), 30, 3
    result = compare.compare(checkpoint, "single")
    assert result["holds"]
    assert result["graphs_equal"]
    assert 0 < result["decode"][1] < 1e-5
    result["by_layer"]["1"] = (0.0, 0.01)
    assert max(mine for _, _, mine in compare.pairs_of(result)) == 0.01 > compare.bound_of(1)
    assert "| single | 1 | reference |" in compare.table([result])
    json.dumps(result)


def test_the_profile_names_the_operations_of_a_step(checkpoint):
    profile = script("profile_step")
    words = ["model=gpt_oss_120b", f"model.path={checkpoint}", "plan=single", "cluster.log_level=error"]
    result = profile.measure(open_session(compose_run(words), None), 2, 40)
    assert result["step_us"] > 0
    assert any("linear" in name or "mm" in name for name, _, _ in result["kernels"])
    assert "batch 2, context 40, 4 layers" in profile.show(result)
    json.dumps(result)


def test_the_profile_names_the_operations_of_a_prefill_step(checkpoint):
    profile = script("profile_step")
    words = ["model=gpt_oss_120b", f"model.path={checkpoint}", "plan=single", "cluster.log_level=error"]
    result = profile.measure_prefill(open_session(compose_run(words), None), 40)
    assert result["step_us"] > 0
    assert any("linear" in name or "mm" in name for name, _, _ in result["kernels"])
    assert "prefill of 40 tokens, 4 layers" in profile.show(result)
    json.dumps(result)
