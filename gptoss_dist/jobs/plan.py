"""`job=plan`: what a plan gives each rank. No torch, no GPU, no weights."""

from __future__ import annotations

from typing import Any

from gptoss_dist.ceilings import CEILINGS, ceiling_named
from gptoss_dist.errors import ConfigError
from gptoss_dist.files import user_path
from gptoss_dist.hub_config import shape_of
from gptoss_dist.jobs.table import Result
from gptoss_dist.limits import Placement, all_reduces, decode_limit
from gptoss_dist.memory import DTYPE_BYTES, RankMemory, predict
from gptoss_dist.plan.capacity import capacity
from gptoss_dist.plan.degrees import Degrees, check_plan, choose_plan, resolve_degrees
from gptoss_dist.plan.picture import picture
from gptoss_dist.plan.ranking import rank_plans
from gptoss_dist.plan.rules import rules_of
from gptoss_dist.plan.verify import check_rules
from gptoss_dist.schema.job.plan import PlanJobConf
from gptoss_dist.schema.run import RunConf
from gptoss_dist.shapes import Shape


def run(run: RunConf) -> Result:
    """The job as `jobs.table` wants it."""
    result = run_plan(run)
    return Result(result, describe(result))


def run_plan(run: RunConf) -> dict[str, Any]:
    """Rules, degrees, and for each rank its weights and the cache of one request, in gigabytes.

    With `job.gpu` also what fits and how fast it could be, and with `plan=auto` every other plan for as many ranks.
    """
    job = run.job
    assert isinstance(job, PlanJobConf)
    shape, packed = shape_of(run.model.path)
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
    placement = Placement(shape, packed, dtype, rules, degrees)
    memories = [predict(shape, rules, degrees, packed, dtype, rank) for rank in range(degrees.world_size)]
    ranks = [_rank(rank, memory, degrees, job.context) for rank, memory in enumerate(memories)]
    result: dict[str, Any] = {"model": run.model.name, "plan": plan.name, "dp": degrees.dp, "tp": degrees.tp}
    result |= {"reason": reason, "context": job.context, "dtype": dtype, "rules": rules, "ranks": ranks}
    result["all_reduces"] = {
        "a_step": all_reduces(placement),
        "bytes_a_token": shape.hidden * DTYPE_BYTES[dtype] if all_reduces(placement) else 0,
    }
    if job.gpu is not None:
        result |= _on_gpu(run, placement, memories, job)
    if job.plot is not None:
        result["plot"] = _draw(job.plot, result, placement, memories)
    return result


def describe(result: dict[str, Any]) -> str:
    """The result as text: the rules, a table with one line a rank, and what a GPU would make of it."""
    lines = [f"{result['model']} by plan={result['plan']}: dp={result['dp']} × tp={result['tp']}, {result['dtype']}"]
    if result["reason"]:
        lines.append(f"plan=auto chose it: {result['reason']}")
    lines += [f"  {name}: {style}" for name, style in result["rules"].items()] or ["  no rules: everything whole"]
    if count := result["all_reduces"]["a_step"]:
        lines.append(f"{count} all-reduces a step, each of {result['all_reduces']['bytes_a_token']} bytes a token")
    if "gpu" in result:
        lines += _describe_gpu(result)
    if "plot" in result:
        lines.append(f"drawn: {result['plot']}")
    lines.append(f"rank  replica  weights GB  cache GB of one request of {result['context']} tokens")
    lines += [
        f"{one['rank']:4d}  {one['replica']:7d}  {one['weights_gb']:10.2f}  {one['cache_gb']:8.3f}"
        for one in result["ranks"]
    ]
    return "\n".join(lines)


def _rank(rank: int, memory: RankMemory, degrees: Degrees, context: int) -> dict[str, Any]:
    return {
        "rank": rank,
        "replica": degrees.dp_rank(rank),
        "weights_gb": round(memory.weights / 1e9, 3),
        "cache_gb": round(memory.cache(context) / 1e9, 3),
        "cache_bytes_per_token": memory.cache_per_token,
    }


def _on_gpu(run: RunConf, placement: Placement, memories: list[RankMemory], job: PlanJobConf) -> dict[str, Any]:
    """What fits on this kind of GPU, the limits of speed, and with plan=auto all plans for as many ranks."""
    ceiling = ceiling_named(str(job.gpu))
    if ceiling is None:
        known = ", ".join(one.name for one in CEILINGS)
        raise ConfigError(f"job.gpu={job.gpu}: its ceilings are not known here. Known: {known}.")
    fraction, streams = run.engine.memory_fraction, tuple(job.streams)
    room = capacity(placement.shape, memories, ceiling.memory_bytes, fraction, job.context)
    limits = [decode_limit(placement, ceiling, count, job.context) for count in streams]
    found: dict[str, Any] = {
        "gpu": ceiling.name,
        "fits": room.fits,
        "cache_free_gb": round(room.free_bytes / 1e9, 2),
        "longest_context": room.longest_context,
        "requests_at_once": room.requests * placement.degrees.dp,
        "decode_limits": [
            {"streams": count, "tokens_per_s": round(limit.tokens_per_s or 0.0, 1), "note": limit.note}
            for count, limit in zip(streams, limits, strict=True)
        ],
    }
    if run.plan.auto:
        ranked = rank_plans(
            placement.shape,
            placement.packed,
            placement.dtype,
            placement.degrees.world_size,
            ceiling,
            fraction,
            job.context,
            streams,
        )
        found["ranking"] = [
            {
                "words": one.words,
                "fits": one.capacity.fits,
                "requests_at_once": one.capacity.requests * one.degrees.dp,
                "tokens_per_s": [round(speed, 1) for speed in one.speeds],
            }
            for one in ranked
        ]
    return found


def _describe_gpu(result: dict[str, Any]) -> list[str]:
    limits = ", ".join(
        f"{one['streams']} stream{'s' * (one['streams'] != 1)} {one['tokens_per_s']:.0f}"
        for one in result["decode_limits"]
    )
    notes = sorted({one["note"] for one in result["decode_limits"] if one["note"]})
    lines = [
        f"on {result['gpu']}: {result['cache_free_gb']:.1f} GB for the cache on the tightest rank, "
        + (
            f"{result['requests_at_once']} requests of {result['context']} tokens at once, longest context "
            f"{result['longest_context']}"
            if result["fits"]
            else f"no request of {result['context']} tokens fits (longest: {result['longest_context']})"
        ),
        f"at best, by bytes and links, tokens/s: {limits}" + "".join(f" ({note})" for note in notes),
    ]
    if "ranking" in result:
        streams = " / ".join(str(one["streams"]) for one in result["decode_limits"])
        lines.append(f"plans for as many ranks, the fastest first (tokens/s at best with {streams} streams):")
        for one in result["ranking"]:
            speeds = " / ".join(f"{speed:.0f}" for speed in one["tokens_per_s"])
            room = f"{one['requests_at_once']} requests at once" if one["fits"] else "does not fit"
            lines.append(f"  {one['words']:32s} {speeds:>16s}   {room}")
    return lines


def _draw(file: str, result: dict[str, Any], placement: Placement, memories: list[RankMemory]) -> str:
    title = f"{result['model']}, plan={result['plan']}, dp={result['dp']} × tp={result['tp']}"
    weights = [memory.weights for memory in memories]
    text = picture(placement.shape, placement.packed, placement.rules, placement.degrees, title, weights)
    try:
        user_path(file, "job.plot").write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"job.plot={file}: cannot be written: {error.strerror}.") from None
    return file


def _names(shape: Shape, packed: bool) -> set[str]:
    """Every parameter of the model, and every module that holds one."""
    parts = [spec.name.split(".") for spec in shape.tensors(dense=not packed)]
    return {".".join(part[:count]) for part in parts for count in range(1, len(part) + 1)}
