"""What is judged of a GPU, on GPUs that are made up: their numbers are those that CUDA gives."""

from __future__ import annotations

import pytest
import torch

from gptoss_dist.config import compose_run
from gptoss_dist.doctor.finding import Level, check
from gptoss_dist.doctor.gpu import Gpu, device_findings, fit, judge
from gptoss_dist.memory import RankMemory

H200 = Gpu("NVIDIA H200", (9, 0), 149 << 30, 150 << 30)
WHOLE = RankMemory(weights=65_250_000_000, cache_per_token=36_864, cache_window=4_718_592, kept_per_token=2_304)


def test_a_gpu_that_nobody_uses_is_fine():
    (line,) = judge(H200)
    assert (line.level, line.text) == (
        Level.ok,
        "NVIDIA H200, compute capability 9.0, 160.0 of 161.1 GB free",
    )


def test_what_others_hold_is_a_warning():
    lines = list(judge(Gpu("NVIDIA H200", (9, 0), 50 << 30, 150 << 30)))
    assert [line.level for line in lines] == [Level.ok, Level.warning]
    assert lines[1].text == "107.4 GB of NVIDIA H200 are taken by other processes"


def test_a_gpu_too_old_is_an_error_with_the_way_out():
    (line,) = judge(Gpu("Tesla V100", (7, 0), 30 << 30, 32 << 30))
    assert (line.level, line.way_out) == (
        Level.error,
        "the built-in kernels need 8.0 (Ampere); kernels=reference runs, slowly",
    )


@pytest.mark.parametrize(
    ("free_gb", "level", "text"),
    [
        (150, Level.ok, "weights 65.2 GB, then room for"),
        (72, Level.warning, "fewer than the model's 131072"),
        (64, Level.error, "weights of 65.2 GB do not fit into the 64.0 GB that are free"),
        (67, Level.error, "do not fit into the 67.0 GB"),
    ],
)
def test_weights_and_cache_are_compared_with_what_is_free(free_gb, level, text):
    line = fit(Gpu("a GPU", (9, 0), int(free_gb * 1e9), 150 << 30), WHOLE, 0.9, 131072)
    assert line.level is level
    assert text in line.text


def test_what_a_plan_cannot_do_is_an_error_like_in_a_run():
    run = compose_run(["job=doctor", "model=gpt_oss_120b", "plan=tp", "plan.tp=3"])
    look = check("device", lambda: device_findings(run, torch.device("cpu"), 0, 3, run.model.path))
    line = list(look)[-1]
    assert line.level is Level.error
    assert "plan.tp=3" in line.text


@pytest.mark.parametrize(("model", "level"), [("tiny", Level.ok), ("gpt_oss_20b", Level.warning)])
def test_a_cpu_is_enough_for_the_toy(model, level):
    run = compose_run(["job=doctor", f"model={model}", "plan=single"])
    lines = list(device_findings(run, torch.device("cpu"), 0, 1, run.model.path))
    assert [(line.about, line.level) for line in lines] == [("device", level), ("kernels", Level.ok)]
