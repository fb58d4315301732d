"""`job=bench`: speed of the engine here, or of a server elsewhere, beside what the hardware allows."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gptoss_dist.bench import machine, table
from gptoss_dist.bench.load import check_load, rows_of
from gptoss_dist.bench.plot import check_plot, draw
from gptoss_dist.bench.statistics import RowResult, compare_contexts
from gptoss_dist.ceilings import ceiling_of
from gptoss_dist.errors import ConfigError, GptOssDistError
from gptoss_dist.jobs.table import Result
from gptoss_dist.limits import Placement
from gptoss_dist.log import get_logger
from gptoss_dist.output import write_json, write_line
from gptoss_dist.plan.rules import rules_of
from gptoss_dist.schema.job.bench import BenchConf
from gptoss_dist.schema.run import RunConf

if TYPE_CHECKING:
    from gptoss_dist.bench.measure import Bench
    from gptoss_dist.runtime.watch import Watch
    from gptoss_dist.session import Session

logger = get_logger(__name__)

_PATIENCE_SECONDS = 3.0
"""How long the end of a stopped run waits for the step under way, and with it for the row under way."""


def check(run: RunConf) -> None:
    """Refuse what cannot be measured, before anything is loaded."""
    job = run.job
    assert isinstance(job, BenchConf)
    check_load(job)
    if job.plot is not None:
        check_plot(job.plot)
        if job.soak_s is not None or (job.rate is None and not _decode_rows(job)):
            raise ConfigError("job.plot draws the rows of job.streams, and there are none. Drop it, or name streams.")
    if job.target is None:
        if job.target_model is not None:
            raise ConfigError("job.target_model names a model of the server at job.target=URL, which is missing.")
    elif not job.target.startswith(("http://", "https://")):
        raise ConfigError(f"job.target={job.target}: give the server's address, such as http://localhost:8000.")
    elif job.soak_s is not None:
        raise ConfigError("job.soak_s looks at memory and pages of the engine here; drop it, or job.target.")


def run(session: Session, watch: Watch, as_json: bool) -> dict[str, Any] | None:
    """The job on all ranks, as `jobs.table` wants it: rank 0 prints the table and returns what `--json` prints."""
    ready_s = machine.process_age_s()
    job = session.run.job
    assert isinstance(job, BenchConf)
    if job.soak_s is not None:
        return _soak(session, job, watch.stop_requested.is_set, as_json)
    if session.group.rank != 0:
        session.engine.follow()
        return None
    from gptoss_dist.bench.driver import Driver
    from gptoss_dist.bench.measure import first_token

    driver = Driver(session.engine, watch.stop_requested.is_set)
    bench, ready = _bench(session, job, driver), _ready(session, ready_s)
    first_token(bench)
    if (first_s := machine.process_age_s()) is not None:
        ready["first_token_s"] = round(first_s, 2)
    content = _measure_rows(bench, {**_facts(session), "ready": ready}, watch, as_json)
    driver.leave()
    return content and _unless_failed(content, as_json)


def run_alone(run: RunConf, as_json: bool) -> Result:
    """The job on a server: no model, no torch."""
    from gptoss_dist.bench.remote import measure_target

    check(run)

    def finish(results: list[RowResult], wanted: int, facts: dict[str, Any], stopped: bool) -> dict[str, Any]:
        assert isinstance(run.job, BenchConf)
        write_line(table.head(facts))
        write_line(_said_before(wanted, run.job))
        content = show(results, wanted, run.job, facts)
        if as_json and stopped:  # the caller will not come to print it
            write_json(content)
        return content

    return Result(_unless_failed(measure_target(run, finish), as_json), "")


def _unless_failed(content: dict[str, Any], as_json: bool) -> dict[str, Any]:
    """What `show` made, if no request failed; else it is printed, and GptOssDistError ends the run."""
    if failed := content["failed"]:
        if as_json:  # the caller will not come to print it
            write_json(content)
        raise GptOssDistError(f"{failed} requests failed, and are not in the numbers. What they met stands above.")
    return content


def _decode_rows(job: BenchConf) -> bool:
    return any(row.kind.value == "decode" for row in rows_of(job, None))


class _Once:
    """Shows results one time only: from the main thread, or where that is stuck, from the one that ends the run."""

    def __init__(self, make: Callable[[], dict[str, Any]]) -> None:
        """`make` shows them."""
        self._make, self._lock, self.done = make, threading.Lock(), threading.Event()

    def __call__(self) -> dict[str, Any] | None:
        """Show; None if that was done before."""
        with self._lock:
            if self.done.is_set():
                return None
            content = self._make()
            self.done.set()
            return content


def _measure_rows(bench: Bench, facts: dict[str, Any], watch: Watch, as_json: bool) -> dict[str, Any] | None:
    """Every row, then table and plot; of a run that ends early, for whatever cause, what there is by then.

    None if another thread has shown it: a step, or a collective of ranks that are gone, may take longer than the grace.
    """
    from gptoss_dist.bench.measure import measure

    job = bench.job
    rows = rows_of(job, bench.engine.context)
    write_line(table.head(facts))
    write_line(_said_before(len(rows), job))
    results: list[RowResult] = []

    def make() -> dict[str, Any]:
        found = list(results)
        compare_contexts(found)
        return show(found, len(rows), job, facts)

    once = _Once(make)

    def rescue() -> None:
        if watch.stop_requested.is_set():
            once.done.wait(_PATIENCE_SECONDS)
        content = once()
        if content is not None and as_json:
            write_json(content)

    watch.on_stop(rescue)
    for result in measure(bench, rows, watch.stop_requested.is_set, logger.info):
        results.append(result)
    return once()


def show(results: list[RowResult], wanted: int, job: BenchConf, facts: dict[str, Any]) -> dict[str, Any]:
    """Print the table, draw the plot, and make the content of `--json`."""
    partial = len(results) < wanted or any(one.status == "partial" for one in results)
    write_line(table.render(results))
    if partial:
        write_line(f"partial: the run was stopped, {len(results)} of {wanted} rows shown")
    if job.plot is not None:
        title = f"{facts.get('model') or facts.get('target')} on {facts.get('device') or 'a server'}"
        file = draw(results, title, job.plot)
        write_line(f"plot: {file}" if file else "no plot: no row of streams has numbers")
    failed = sum(one.errors for one in results)
    return {**facts, "partial": partial, "failed": failed, "rows": [one.content() for one in results]}


def _said_before(rows: int, job: BenchConf) -> str:
    warm = "no warm-up: the first requests pay for it"
    if job.warmup_tokens:
        warm = f"warm-up before each row: one request a stream, up to {job.warmup_tokens} tokens, not counted"
    return f"{rows} row{'s' if rows > 1 else ''}; {warm}; (n): of n samples"


def _bench(session: Session, job: BenchConf, driver: Any) -> Bench:
    from gptoss_dist.bench.measure import TEXT_TOKENS, Bench

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


def _facts(session: Session) -> dict[str, Any]:
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


def _kernels(chosen: Any) -> dict[str, str]:
    """What was chosen, part by part, without the reason."""
    parts = {
        one.name: getattr(chosen, one.name) for one in dataclasses.fields(chosen) if not one.name.endswith("reason")
    }
    return {name: str(getattr(part, "value", part)) for name, part in parts.items() if part is not None}


def _ready(session: Session, ready_s: float | None) -> dict[str, Any]:
    """Seconds from the start of rank 0's process, and of what started it, until it could generate."""
    found: dict[str, Any] = {}
    if ready_s is not None:
        found["process_s"] = round(ready_s, 2)
    if "TORCHELASTIC_RUN_ID" in os.environ and (age := machine.process_age_s(os.getppid())) is not None:
        found["launcher_s"] = round(age, 2)
    return {**found, "weights_s": round(session.loaded.seconds, 2)}


def _soak(session: Session, job: BenchConf, should_stop: Callable[[], bool], as_json: bool) -> dict[str, Any] | None:
    """Mixed load for `job.soak_s` seconds on all ranks; GptOssDistError at its end if something was not in order."""
    from gptoss_dist.bench.arrivals import TimedLoop
    from gptoss_dist.bench.driver import Driver
    from gptoss_dist.bench.memory import Sampler, drifts
    from gptoss_dist.bench.soak import Tally, problems, render_soak, report

    scheduler = getattr(session.engine, "scheduler", None)
    sampler = Sampler(job.sample_s, scheduler.check if scheduler is not None else _no_pages)
    tally, whole = Tally(), True
    if session.group.rank == 0:
        facts = _facts(session)
        write_line(table.head(facts))
        driver = Driver(session.engine, should_stop, sampler)
        whole = _soak_load(_bench(session, job, driver), TimedLoop(max(job.streams), job.soak_s or 0.0), tally)
        driver.leave()
    else:
        session.engine.follow(sampler)
    sampler.close()
    found = drifts(session.group.rank, sampler.samples, job.growth_mb_per_min)
    every = [one for rank in session.group.all_gather_object(found) for one in rank]
    if session.group.rank != 0:
        return None
    checks, preemptions = len(sampler.samples) if scheduler is not None else 0, session.engine.stats().preemptions
    soak = report(tally, every, checks, preemptions, whole)
    content = {**facts, "partial": not whole, "soak": soak}
    write_line(render_soak(soak))
    if wrong := problems(soak, job):
        if as_json:
            write_json(content)
        raise GptOssDistError("the soak failed: " + "; ".join(wrong))
    return content


def _no_pages() -> None:
    """An engine without pages has none to check."""


def _soak_load(bench: Bench, arrivals: Any, tally: Any) -> bool:
    from gptoss_dist.bench.load import prompt
    from gptoss_dist.bench.soak import lengths
    from gptoss_dist.engine.request import Request

    job = bench.job
    if job.input_tokens + job.output_tokens > bench.engine.context:
        raise ConfigError(
            f"job.input_tokens={job.input_tokens} and job.output_tokens={job.output_tokens}: model or cache take "
            f"{bench.engine.context} tokens. Lower them."
        )

    def make(name: str, number: int) -> Request:
        one = lengths(job, number)
        tokens = prompt(job.seed, 0, number, one.prompt, bench.vocabulary)
        return Request(name, tokens, bench.sampling(one.output, number))

    logger.info("soak for %.0f s at %d streams; started %s", job.soak_s, max(job.streams), time.strftime("%H:%M:%S"))
    return bench.driver.run(arrivals, make, tally, lambda number: lengths(job, number).cancel_after)
