"""A soak on the engine of a session, on all its ranks; what it counts and judges is in `soak`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gptoss_dist.bench import table
from gptoss_dist.bench.arrivals import TimedLoop
from gptoss_dist.bench.driver import Driver
from gptoss_dist.bench.load import prompt
from gptoss_dist.bench.measure import Bench
from gptoss_dist.bench.memory import Sampler, drifts
from gptoss_dist.bench.soak import Tally, lengths, problems, render_soak, report
from gptoss_dist.bench.subject import bench_of, facts_of
from gptoss_dist.engine.request import Request
from gptoss_dist.errors import ConfigError, GptOssDistError
from gptoss_dist.log import get_logger
from gptoss_dist.output import write_json, write_line
from gptoss_dist.schema.job.bench import BenchConf

if TYPE_CHECKING:
    from gptoss_dist.session import Session

logger = get_logger(__name__)


def run_soak(session: Session, job: BenchConf, should_stop: Callable[[], bool], as_json: bool) -> dict[str, Any] | None:
    """Mixed load for `job.soak_s` seconds on all ranks; GptOssDistError at its end if something was not in order."""
    scheduler = getattr(session.engine, "scheduler", None)
    sampler = Sampler(job.sample_s, scheduler.check if scheduler is not None else _no_pages)
    tally, whole = Tally(), True
    if session.group.rank == 0:
        facts = facts_of(session)
        write_line(table.head(facts))
        driver = Driver(session.engine, should_stop, sampler)
        whole = _load(bench_of(session, job, driver), TimedLoop(max(job.streams), job.soak_s or 0.0), tally)
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


def _load(bench: Bench, arrivals: TimedLoop, tally: Tally) -> bool:
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
