"""`job=plan`: what a plan gives each rank. No torch, no GPU, no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptoss_dist.errors import ConfigError
from gptoss_dist.files import read_json
from gptoss_dist.hub_config import is_packed, read_shape
from gptoss_dist.jobs.table import Result
from gptoss_dist.memory import predict
from gptoss_dist.plan.degrees import check_plan, choose_plan, resolve_degrees
from gptoss_dist.plan.rules import rules_of
from gptoss_dist.plan.verify import check_rules
from gptoss_dist.schema import PlanJobConf, RunConf
from gptoss_dist.shapes import SIZES, Shape

_BY_PATH = {"openai/gpt-oss-120b": "120b", "openai/gpt-oss-20b": "20b", "tiny": "tiny"}
"""Models that need not lie here to be planned for, by their `model.path` in `conf/model`."""


def run(run: RunConf) -> Result:
    """The job as `jobs.table` wants it."""
    result = run_plan(run)
    return Result(result, describe(result))


def run_plan(run: RunConf) -> dict[str, Any]:
    """Rules, degrees, and for each rank its weights and the cache of one request, in gigabytes."""
    job = run.job
    assert isinstance(job, PlanJobConf)
    shape, packed = _shape(run)
    packed = packed and not run.model.dequantize
    plan, reason = run.plan, None
    degrees = resolve_degrees(plan, job.ranks, (plan.dp or 1) * (plan.tp or 1))
    if plan.auto:
        plan, reason = choose_plan(shape, degrees.world_size)
        degrees = resolve_degrees(plan, degrees.world_size, 1)
    check_plan(plan, shape, degrees, packed)
    rules = rules_of(plan, packed)
    check_rules(rules, _names(shape, packed))
    dtype = "bfloat16" if run.model.dtype.value == "auto" else run.model.dtype.value
    ranks = []
    for rank in range(degrees.world_size):
        memory = predict(shape, rules, degrees, packed, dtype, rank)
        ranks.append(
            {
                "rank": rank,
                "replica": degrees.dp_rank(rank),
                "weights_gb": round(memory.weights / 1e9, 3),
                "cache_gb": round(memory.cache(job.context) / 1e9, 3),
            }
        )
    result: dict[str, Any] = {"model": run.model.name, "plan": plan.name, "dp": degrees.dp, "tp": degrees.tp}
    return {**result, "reason": reason, "context": job.context, "dtype": dtype, "rules": rules, "ranks": ranks}


def describe(result: dict[str, Any]) -> str:
    """The result as text: the rules, then a table with one line a rank."""
    lines = [f"{result['model']} by plan={result['plan']}: dp={result['dp']} × tp={result['tp']}, {result['dtype']}"]
    if result["reason"]:
        lines.append(f"plan=auto chose it: {result['reason']}")
    lines += [f"  {name}: {style}" for name, style in result["rules"].items()] or ["  no rules: everything whole"]
    lines.append(f"rank  replica  weights GB  cache GB of one request of {result['context']} tokens")
    lines += [
        f"{one['rank']:4d}  {one['replica']:7d}  {one['weights_gb']:10.2f}  {one['cache_gb']:8.3f}"
        for one in result["ranks"]
    ]
    return "\n".join(lines)


def _shape(run: RunConf) -> tuple[Shape, bool]:
    """From the checkpoint's config.json if it lies here, else from the name of a model that is known."""
    path = run.model.path
    if path in _BY_PATH and not (path != "tiny" and Path(path).is_dir()):
        return SIZES[_BY_PATH[path]], True
    file = Path(path) / "config.json"
    if not Path(path).is_dir():
        raise ConfigError(f"model.path={path}: no such folder, so the model's shape is not known. Set model.path=DIR.")
    config = read_json(file)
    return read_shape(config, str(file)), is_packed(config)


def _names(shape: Shape, packed: bool) -> set[str]:
    """Every parameter of the model, and every module that holds one."""
    parts = [spec.name.split(".") for spec in shape.tensors(dense=not packed)]
    return {".".join(part[:count]) for part in parts for count in range(1, len(part) + 1)}
