"""What a session has loaded, as a measurement of it and its report need it."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Any

from gptoss_dist.bench import machine
from gptoss_dist.bench.measure import TEXT_TOKENS, Bench
from gptoss_dist.ceilings import ceiling_of
from gptoss_dist.limits import Placement
from gptoss_dist.plan.rules import rules_of
from gptoss_dist.schema.job.bench import BenchConf

if TYPE_CHECKING:
    from gptoss_dist.bench.driver import Driver
    from gptoss_dist.session import Session


def bench_of(session: Session, job: BenchConf, driver: Driver) -> Bench:
    """The engine, and what the limit of its speed follows from."""
    loaded, run = session.loaded, session.run
    checkpoint = loaded.checkpoint
    packed = checkpoint.packed and not run.model.dequantize
    dtype = checkpoint.dtype if run.model.dtype.value == "auto" else run.model.dtype.value
    placement = Placement(checkpoint.shape, packed, dtype, rules_of(loaded.plan, packed), loaded.degrees)
    gpu = machine.gpu_name() if session.group.device.type == "cuda" else None
    return Bench(
        engine=session.engine,
        driver=driver,
        job=job,
        generation=run.generation,
        vocabulary=min(job.vocabulary or TEXT_TOKENS, checkpoint.shape.vocab),
        placement=placement,
        ceiling=ceiling_of(gpu),
        max_running=run.engine.max_running,
    )


def facts_of(session: Session) -> dict[str, Any]:
    """What ran where."""
    loaded, run, on_gpu = session.loaded, session.run, session.group.device.type == "cuda"
    found = machine.facts(sys.argv[1:])
    device = machine.gpu_name() if on_gpu else f"CPU, {found['processor']}"
    ceiling = ceiling_of(device) if on_gpu else None
    return {
        "device": device,
        "devices": session.group.world_size,
        "cuda": machine.cuda_version() if on_gpu else None,
        "model": loaded.checkpoint.folder.name,
        "plan": {"name": loaded.plan.name, "dp": loaded.degrees.dp, "tp": loaded.degrees.tp},
        "backend": session.backend.value,
        "kernels": _kernels(loaded.kernels),
        "sampling": {"temperature": run.generation.temperature, "top_p": run.generation.top_p},
        "ceilings": None if ceiling is None else ceiling.source,
        **found,
    }


def ready_of(session: Session, ready_s: float | None) -> dict[str, Any]:
    """Seconds from the start of rank 0's process, and of what started it, until it could generate."""
    found: dict[str, Any] = {}
    if ready_s is not None:
        found["process_s"] = round(ready_s, 2)
    if "TORCHELASTIC_RUN_ID" in os.environ and (age := machine.process_age_s(os.getppid())) is not None:
        found["launcher_s"] = round(age, 2)
    return {**found, "weights_s": round(session.loaded.seconds, 2)}


def _kernels(chosen: Any) -> dict[str, str]:
    """What was chosen, part by part, without the reason."""
    parts = {
        one.name: getattr(chosen, one.name) for one in dataclasses.fields(chosen) if not one.name.endswith("reason")
    }
    return {name: str(getattr(part, "value", part)) for name, part in parts.items() if part is not None}
