from __future__ import annotations

import dataclasses
import math

import pytest

from gptoss_dist.checks import FLASH3, check
from gptoss_dist.errors import ConfigError
from gptoss_dist.schema.job.generate import GenerateConf, Template
from gptoss_dist.schema.job.plan import PlanJobConf
from gptoss_dist.schema.job.synth import SynthConf
from gptoss_dist.schema.kernels import ExpertKernel
from gptoss_dist.schema.plan import AttentionPart, ExpertPart, PlanConf, VocabularyPart
from gptoss_dist.schema.run import JOBS, RunConf


def a_run(**changes: object) -> RunConf:
    """A run that passes, with `group__key=value` set."""
    run = RunConf(job=GenerateConf(name="generate"))
    run.model.name, run.model.path = "tiny", "tiny"
    run.plan.name, run.plan.tp = "single", 1
    for key, value in changes.items():
        node: object = run
        *path, last = key.split("__")
        for name in path:
            node = getattr(node, name)
        assert hasattr(node, last), key
        setattr(node, last, value)
    return run


def refusal(run: RunConf) -> str:
    with pytest.raises(ConfigError) as caught:
        check(run)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_ordinary_run_passes():
    check(a_run())
    for name, kind in JOBS.items():
        check(a_run(job=kind(name=name)))


_RANGES = {
    "generation__max_new_tokens": ((None, 1, 10**9), (0, -1)),
    "generation__temperature": ((0.0, -0.0, 1e-6, 1.0, 2.0), (-0.001, 2.001, 1e-7, math.nan, math.inf, -math.inf)),
    "generation__top_p": ((1e-9, 0.5, 1.0), (0.0, -0.5, 1.0001, math.nan, math.inf)),
    "generation__top_k": ((None, 1, 10**6), (0, -1)),
    "generation__min_p": ((0.0, 0.999), (1.0, -0.1, math.nan)),
    "generation__seed": ((None, 0, 2**63 - 1), (-1, 2**63)),
    "generation__stop": (([], ["a"], [" "], ["\n"]), ([""], ["a", ""])),
    "cluster__timeout_s": ((0.001, 600.0, 1e6), (0.0, -1.0, math.nan, math.inf, 1e9)),
    "cluster__agree_every": ((0, 1, 32), (-1,)),
    "cluster__log_level": (("debug", "info", "warning", "error"), ("INFO", "critical", "", "notset")),
    "model__path": (("x", "a/b"), ("",)),
    "plan__dp": ((1,), (0, -2)),
    "plan__tp": ((None, 1), (0, -2)),
}


@pytest.mark.parametrize("key", _RANGES)
def test_ranges_and_their_borders(key):
    good, bad = _RANGES[key]
    for value in good:
        check(a_run(**{key: value}))
    for value in bad:
        assert key.replace("__", ".") in refusal(a_run(**{key: value}))


@pytest.mark.parametrize("name", ["sdpa", "flash_attention_2", ""])
def test_attention_without_sinks_is_refused_before_anything_runs(name):
    assert refusal(a_run(kernels__attention=name)).startswith(f"kernels.attention={name}: not known to keep")


@pytest.mark.parametrize("name", ["auto", "eager", FLASH3, "vllm-flash-attn3:flash_attn_varlen_func"])
def test_attention_with_sinks_passes(name):
    check(a_run(kernels__attention=name))


def test_a_timeout_that_passes_makes_a_timedelta_that_torch_can_hold():
    from datetime import timedelta

    for value in _RANGES["cluster__timeout_s"][0]:
        assert timedelta(seconds=value) / timedelta(microseconds=1) < 2**63 / 1000  # it counts in nanoseconds


def test_one_degree_may_be_open_and_not_both():
    check(a_run(plan__dp=None))
    assert "one of them must be a number" in refusal(a_run(plan__dp=None, plan__tp=None))


def test_device_map_is_one_process():
    check(a_run(plan__device_map=True))
    for changes in ({"plan__tp": 2}, {"plan__dp": 2}, {"plan__tp": None}):
        assert "device_map" in refusal(a_run(plan__device_map=True, **changes))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dp", 2),
        ("tp", 4),
        ("attention", AttentionPart.tp),
        ("vocabulary", VocabularyPart.head),
        ("experts", ExpertPart.ep),
        ("rules", {"lm_head": "replicate"}),
        ("device_map", True),
    ],
)
def test_plan_auto_passes_over_nothing_that_is_set_beside_it(key, value):
    check(a_run(plan=PlanConf(name="auto", auto=True)))
    assert f"plan.{key}=" in refusal(a_run(plan=PlanConf(name="auto", auto=True, **{key: value})))


def test_ranks_among_which_nothing_is_divided_are_refused():
    assert "plan=single with plan.tp=2: nothing of it lies over ranks" in refusal(a_run(plan__tp=2))
    for changes in ({"plan__attention": AttentionPart.tp}, {"plan__rules": {"lm_head": "colwise_gather_output"}}):
        check(a_run(plan__tp=2, **changes))


def test_rules_for_experts_and_plan_experts_exclude_each_other():
    rules = {"model.layers.*.mlp.experts": "gptoss_expert_slices"}
    check(a_run(plan__rules=rules))
    assert "plan.experts=ep" in refusal(a_run(plan__rules=rules, plan__experts=ExpertPart.ep))


def test_a_rule_names_a_style():
    assert "plan.rules: lm_head" in refusal(a_run(plan__rules={"lm_head": {"weight": "colwise"}}))


def test_packed_kernels_need_packed_weights():
    check(a_run(kernels__experts=ExpertKernel.reference, model__dequantize=True))
    for kernel in (ExpertKernel.hub, ExpertKernel.triton, ExpertKernel.cuda):
        message = refusal(a_run(kernels__experts=kernel, model__dequantize=True))
        assert f"kernels.experts={kernel.value}" in message
        assert "model.dequantize=true" in message


@pytest.mark.parametrize("pair", [("prompt", "job__file"), ("prompt", "job__messages"), ("job__file", "job__messages")])
@pytest.mark.parametrize("values", [("a", "b"), ("", "b"), ("a", "")])
def test_one_prompt(pair, values):
    for key in pair:
        check(a_run(**{key: "a"}))
    message = refusal(a_run(**dict(zip(pair, values, strict=True))))
    assert " and ".join(key.replace("__", ".") for key in pair) in message


def test_raw_has_no_room_for_a_conversation():
    check(a_run(prompt="a", job__template=Template.raw))
    for key in ("system", "developer", "messages", "tools"):
        assert "job.template=raw" in refusal(a_run(**{"job__template": Template.raw, f"job__{key}": "x"}))
    assert "job.template=raw" in refusal(a_run(job__template=Template.raw, job__builtin_tools=["python"]))


def test_builtin_tools_are_known():
    check(a_run(job__builtin_tools=["browser", "python"]))
    assert "shell" in refusal(a_run(job__builtin_tools=["browser", "shell"]))


def test_a_job_keeps_its_name():
    for name in ("plan", "nothing"):
        assert f"job.name={name}" in refusal(a_run(job__name=name))


@pytest.mark.parametrize(
    ("job", "keys"),
    [(PlanJobConf(name="plan"), ("context", "ranks")), (SynthConf(name="synth"), ("layers", "experts"))],
)
def test_counts_of_jobs_begin_at_one(job, keys):
    check(a_run(job=job))
    for key in keys:
        check(a_run(job=dataclasses.replace(job, **{key: 1})))
        for value in (0, -1):
            assert f"job.{key}={value}" in refusal(a_run(job=dataclasses.replace(job, **{key: value})))
