"""What the keys of a run mean together: pure functions over the schema, each with one message.

What needs the model's shape or the number of ranks is checked where those are known: `gptoss_dist.plan.degrees`.
"""

from __future__ import annotations

import dataclasses
import re
from enum import Enum

from gptoss_dist.errors import ConfigError
from gptoss_dist.schema.engine import EngineConf
from gptoss_dist.schema.generation import GenerationConf
from gptoss_dist.schema.job.generate import GenerateConf, Template
from gptoss_dist.schema.job.plan import PlanJobConf
from gptoss_dist.schema.job.serve import ServeConf
from gptoss_dist.schema.job.synth import SynthConf
from gptoss_dist.schema.kernels import ExpertKernel
from gptoss_dist.schema.plan import ExpertPart, PlanConf
from gptoss_dist.schema.run import JOBS, RunConf

_LOG_LEVELS = ("debug", "info", "warning", "error")
_BUILTIN_TOOLS = ("browser", "python")
_PACKED_KERNELS = (ExpertKernel.hub, ExpertKernel.triton, ExpertKernel.cuda)
FLASH3 = "kernels-community/vllm-flash-attn3"
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#\sA-Z]+")
_ATTENTIONS = {
    "eager": "eager",
    FLASH3: FLASH3,
    "vllm-flash-attn3": FLASH3,
    "vllm-flash-attn3:flash_attn_varlen_func": FLASH3,
    f"{FLASH3}:flash_attn_varlen_func": FLASH3,
}
"""Every accepted name of an attention implementation that knows sinks and windows."""
_LONGEST_TIMEOUT = 1e6
_LOWEST_TEMPERATURE = 1e-6


def check(run: RunConf) -> None:
    """Raise ConfigError for the first combination that cannot work."""
    check_generation(run.generation)
    _check_plan(run.plan)
    _check_engine(run.engine)
    if run.kernels.attention != "auto":
        attention_named(run.kernels.attention)
    if run.kernels.experts in _PACKED_KERNELS and run.model.dequantize:
        raise ConfigError(
            f"kernels.experts={run.kernels.experts.value} multiplies packed MXFP4 weights, and model.dequantize=true "
            "has none. Drop one of them."
        )
    if not run.model.path:
        raise ConfigError("model.path is empty: a folder, or a name on the hub.")
    if not 0 < run.cluster.timeout_s <= _LONGEST_TIMEOUT:
        raise ConfigError(f"cluster.timeout_s={run.cluster.timeout_s}: seconds, above 0, up to {_LONGEST_TIMEOUT:.0f}.")
    if run.cluster.agree_every < 0:
        raise ConfigError(f"cluster.agree_every={run.cluster.agree_every}: steps, 0 (never) or more.")
    if run.cluster.log_level not in _LOG_LEVELS:
        raise ConfigError(f"cluster.log_level={run.cluster.log_level}: one of {', '.join(_LOG_LEVELS)}.")
    _check_job(run)


def check_generation(generation: GenerationConf) -> None:
    """Raise ConfigError for a value that no distribution can be made of."""
    ranges = (
        (
            "max_new_tokens",
            generation.max_new_tokens is None or generation.max_new_tokens >= 1,
            "1 or more, or null",
        ),
        (
            "temperature",
            generation.temperature == 0 or _LOWEST_TEMPERATURE <= generation.temperature <= 2,
            "0, or 0.000001 to 2",
        ),
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


def attention_named(name: str) -> str:
    """The implementation that `kernels.attention=NAME` means.

    Raises ConfigError for one that is not known to keep the sinks: gpt-oss learned one for each head, and an
    implementation that ignores them computes another model without a word.
    """
    if name not in _ATTENTIONS:
        raise ConfigError(
            f"kernels.attention={name}: not known to keep gpt-oss's attention sinks. Known: auto, "
            f"{', '.join(_ATTENTIONS)}."
        )
    return _ATTENTIONS[name]


def _check_job(run: RunConf) -> None:
    job = run.job
    if JOBS.get(job.name) is not type(job):
        raise ConfigError(f"job.name={job.name}: a job keeps its name. Another job: gptoss JOB, or job=JOB.")
    if isinstance(job, GenerateConf):
        _check_generate(run, job)
    if isinstance(job, ServeConf):
        _check_serve(job)
    if run.engine.script is not None and not isinstance(job, ServeConf):
        raise ConfigError(f"engine.script={run.engine.script}: a script is served, not run. Say gptoss serve.")
    if isinstance(job, PlanJobConf):
        _check_counts(context=job.context, ranks=job.ranks)
    if isinstance(job, SynthConf):
        _check_counts(layers=job.layers, experts=job.experts)


def _check_serve(job: ServeConf) -> None:
    ranges = (
        ("port", 0 <= job.port < 65536, "0 (a free one) to 65535"),
        ("max_waiting", job.max_waiting >= 1, "1 or more"),
        ("max_body_mb", 0 < job.max_body_mb <= 1024, "above 0, up to 1024"),
        ("max_behind", job.max_behind >= 1, "1 or more"),
        ("store_responses", job.store_responses >= 0, "0 or more"),
        ("store_mb", 0 <= job.store_mb <= 2**20, "MiB, 0 or more"),
        ("drain_s", 0 <= job.drain_s <= 86400, "seconds, 0 to 86400"),
        ("host", bool(job.host.strip()), "an address or a name; 127.0.0.1 is this machine, 0.0.0.0 all"),
    )
    for name, holds, wanted in ranges:
        if not holds:
            raise ConfigError(f"job.{name}={getattr(job, name)}: must be {wanted}.")
    for origin in job.cors_origins:
        if not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"job.cors_origins: {origin!r} is no origin as browsers send it: https://my.site or "
                'http://localhost:3000, lower case, without a path; "*" is all.'
            )


def _check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ConfigError(f"job.{name}={value}: must be 1 or more.")


def _check_engine(engine: EngineConf) -> None:
    if engine.page_size < 1 or engine.page_size & (engine.page_size - 1):
        raise ConfigError(f"engine.page_size={engine.page_size}: a power of two of tokens.")
    for name in ("step_tokens", "mixed_step_tokens", "max_running", "cache_tokens"):
        value = getattr(engine, name)
        if value is not None and value < 1:
            raise ConfigError(f"engine.{name}={value}: 1 or more.")
    for name in ("step_tokens", "mixed_step_tokens"):
        value = getattr(engine, name)
        if value is not None and value < engine.max_running:
            raise ConfigError(
                f"engine.{name}={value} is below engine.max_running={engine.max_running}: a step must hold a token of "
                "every running request. Raise the one or lower the other."
            )
    if not 0 < engine.memory_fraction <= 1:
        raise ConfigError(f"engine.memory_fraction={engine.memory_fraction}: above 0, up to 1.")


def _check_plan(plan: PlanConf) -> None:
    for name in ("dp", "tp"):
        value = getattr(plan, name)
        if value is not None and value < 1:
            raise ConfigError(f"plan.{name}={value}: ranks are counted from 1; null takes all there are.")
    if plan.dp is None and plan.tp is None:
        raise ConfigError("plan.dp=null and plan.tp=null: one of them must be a number.")
    if plan.auto:
        _check_auto(plan)
    if plan.device_map and (plan.dp, plan.tp) != (1, 1):
        raise ConfigError("plan=device_map places one process over several GPUs: plan.dp and plan.tp stay 1.")
    parts = (plan.attention, plan.vocabulary, plan.experts)
    if (plan.tp or 1) > 1 and not plan.auto and not plan.rules and all(part.value == "whole" for part in parts):
        raise ConfigError(
            f"plan={plan.name} with plan.tp={plan.tp}: nothing of it lies over ranks, and each would hold and compute "
            f"all of the model. plan=tp divides it; plan.dp={plan.tp} plan.tp=1 makes replicas."
        )
    wrong = [name for name, style in plan.rules.items() if not isinstance(style, str)]
    if wrong:
        raise ConfigError(f"plan.rules: {wrong[0]}: a style's name is needed. Write the whole name as one key.")
    if plan.experts is ExpertPart.ep and any("experts" in name for name in plan.rules):
        raise ConfigError("plan.rules names experts while plan.experts=ep deals them out. Set plan.experts=whole.")


def _check_auto(plan: PlanConf) -> None:
    """plan=auto chooses all of this itself, and would pass over what is set beside it."""
    chosen = PlanConf(name=plan.name, auto=True)
    for one in dataclasses.fields(plan):
        value = getattr(plan, one.name)
        if value != getattr(chosen, one.name):
            shown = value.value if isinstance(value, Enum) else value
            raise ConfigError(f"plan.{one.name}={shown}: plan=auto chooses it. Drop it, or take another plan.")


def _check_generate(run: RunConf, job: GenerateConf) -> None:
    given = [
        name
        for name, value in (("prompt", run.prompt), ("job.file", job.file), ("job.messages", job.messages))
        if value is not None
    ]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} each give a prompt. Keep one of them.")
    unknown = [name for name in job.builtin_tools if name not in _BUILTIN_TOOLS]
    if unknown:
        raise ConfigError(f"job.builtin_tools={unknown}: gpt-oss knows {' and '.join(_BUILTIN_TOOLS)}.")
    if job.template is Template.raw and (job.messages or job.tools or job.builtin_tools or job.system or job.developer):
        raise ConfigError("job.template=raw sends the bare prompt: it has no room for messages, tools or instructions.")
