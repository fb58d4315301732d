"""What the keys of a run mean together: pure functions over the schema, each with one message.

What needs the model's shape or the number of ranks is checked where those are known: `gptoss_dist.plan.degrees`.
"""

from __future__ import annotations

import math

from gptoss_dist.errors import ConfigError
from gptoss_dist.schema import ExpertKernel, ExpertPart, GenerateConf, GenerationConf, PlanConf, RunConf, Template

_LOG_LEVELS = ("debug", "info", "warning", "error")
_BUILTIN_TOOLS = ("browser", "python")


def check(run: RunConf) -> None:
    """Raise ConfigError for the first combination that cannot work."""
    _check_generation(run.generation)
    _check_plan(run.plan)
    if run.kernels.experts is ExpertKernel.hub and run.model.dequantize:
        raise ConfigError(
            "kernels.experts=hub multiplies packed MXFP4 weights, and model.dequantize=true has none. Drop one of them."
        )
    if run.cluster.timeout_s <= 0:
        raise ConfigError(f"cluster.timeout_s={run.cluster.timeout_s}: seconds, above 0.")
    if run.cluster.agree_every < 0:
        raise ConfigError(f"cluster.agree_every={run.cluster.agree_every}: steps, 0 (never) or more.")
    if run.cluster.log_level not in _LOG_LEVELS:
        raise ConfigError(f"cluster.log_level={run.cluster.log_level}: one of {', '.join(_LOG_LEVELS)}.")
    if isinstance(run.job, GenerateConf):
        _check_generate(run, run.job)


def _check_generation(generation: GenerationConf) -> None:
    ranges = (
        ("max_new_tokens", generation.max_new_tokens >= 1, "1 or more"),
        ("temperature", 0 <= generation.temperature <= 2 and math.isfinite(generation.temperature), "0 to 2"),
        ("top_p", 0 < generation.top_p <= 1, "above 0, up to 1"),
        ("top_k", generation.top_k is None or generation.top_k >= 1, "1 or more, or null"),
        ("min_p", 0 <= generation.min_p < 1, "0 up to 1"),
        ("seed", generation.seed is None or 0 <= generation.seed < 2**63, "0 up to 2**63, or null"),
    )
    for name, holds, wanted in ranges:
        if not holds:
            raise ConfigError(f"generation.{name}={getattr(generation, name)}: must be {wanted}.")
    if any(not text for text in generation.stop):
        raise ConfigError("generation.stop holds an empty text, which would stop before the first token. Drop it.")


def _check_plan(plan: PlanConf) -> None:
    for name in ("dp", "tp"):
        value = getattr(plan, name)
        if value is not None and value < 1:
            raise ConfigError(f"plan.{name}={value}: ranks are counted from 1; null takes all there are.")
    if plan.dp is None and plan.tp is None:
        raise ConfigError("plan.dp=null and plan.tp=null: one of them must be a number.")
    if plan.device_map and (plan.dp, plan.tp) != (1, 1):
        raise ConfigError("plan=device_map places one process over several GPUs: plan.dp and plan.tp stay 1.")
    if plan.experts is ExpertPart.ep and any("experts" in name for name in plan.rules):
        raise ConfigError("plan.rules names experts while plan.experts=ep deals them out. Set plan.experts=whole.")


def _check_generate(run: RunConf, job: GenerateConf) -> None:
    given = [
        name
        for name, value in (("prompt", run.prompt), ("job.file", job.file), ("job.messages", job.messages))
        if value
    ]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} each give a prompt. Keep one of them.")
    unknown = [name for name in job.builtin_tools if name not in _BUILTIN_TOOLS]
    if unknown:
        raise ConfigError(f"job.builtin_tools={unknown}: gpt-oss knows {' and '.join(_BUILTIN_TOOLS)}.")
    if job.template is Template.raw and (job.messages or job.tools or job.builtin_tools or job.system or job.developer):
        raise ConfigError("job.template=raw sends the bare prompt: it has no room for messages, tools or instructions.")
