"""`job=bench`: speed of the engine here, or of a server elsewhere, beside what the hardware allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gptoss_dist.bench import machine
from gptoss_dist.bench.load import check_load, rows_of
from gptoss_dist.bench.plot import check_plot
from gptoss_dist.bench.report import Once, show, show_head, unless_failed
from gptoss_dist.bench.statistics import RowResult, compare_contexts
from gptoss_dist.errors import ConfigError
from gptoss_dist.jobs.table import Result
from gptoss_dist.log import get_logger
from gptoss_dist.output import write_json
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
        from gptoss_dist.bench.soak_run import run_soak

        return run_soak(session, job, watch.stop_requested.is_set, as_json)
    if session.group.rank != 0:
        session.engine.follow()
        return None
    from gptoss_dist.bench.driver import Driver
    from gptoss_dist.bench.measure import first_token
    from gptoss_dist.bench.subject import bench_of, facts_of, ready_of

    driver = Driver(session.engine, watch.stop_requested.is_set)
    bench, ready = bench_of(session, job, driver), ready_of(session, ready_s)
    first_token(bench)
    if (first_s := machine.process_age_s()) is not None:
        ready["first_token_s"] = round(first_s, 2)
    content = _measure_rows(bench, {**facts_of(session), "ready": ready}, watch, as_json)
    driver.leave()
    return content and unless_failed(content, as_json)


def run_alone(run: RunConf, as_json: bool) -> Result:
    """The job on a server: no model, no torch."""
    from gptoss_dist.bench.remote import measure_target

    check(run)

    def finish(results: list[RowResult], wanted: int, facts: dict[str, Any], stopped: bool) -> dict[str, Any]:
        assert isinstance(run.job, BenchConf)
        show_head(wanted, run.job, facts)
        content = show(results, wanted, run.job, facts)
        if as_json and stopped:  # the caller will not come to print it
            write_json(content)
        return content

    return Result(unless_failed(measure_target(run, finish), as_json), "")


def _decode_rows(job: BenchConf) -> bool:
    return any(row.kind.value == "decode" for row in rows_of(job, None))


def _measure_rows(bench: Bench, facts: dict[str, Any], watch: Watch, as_json: bool) -> dict[str, Any] | None:
    """Every row, then table and plot; of a run that ends early, for whatever cause, what there is by then.

    None if another thread has shown it: a step, or a collective of ranks that are gone, may take longer than the grace.
    """
    from gptoss_dist.bench.measure import measure

    job = bench.job
    rows = rows_of(job, bench.engine.context)
    show_head(len(rows), job, facts)
    results: list[RowResult] = []

    def make() -> dict[str, Any]:
        found = list(results)
        compare_contexts(found)
        return show(found, len(rows), job, facts)

    once = Once(make)

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
