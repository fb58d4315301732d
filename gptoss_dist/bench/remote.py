"""The rows of a job on a server: the same load, clock and statistics as on the engine. No torch."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx

from gptoss_dist.bench import machine, table
from gptoss_dist.bench.arrivals import arrivals_of
from gptoss_dist.bench.client import Endpoint, first_model, stream
from gptoss_dist.bench.load import FIRST_TOKENS, WARM_UP, Row, prompt, rows_of
from gptoss_dist.bench.records import Loads, Record
from gptoss_dist.bench.statistics import RowResult, compare_contexts, compare_with_limit, summarize
from gptoss_dist.errors import ServerError
from gptoss_dist.limits import Limit
from gptoss_dist.log import get_logger
from gptoss_dist.schema.job.bench import BenchApi, BenchConf
from gptoss_dist.schema.run import RunConf

logger = get_logger(__name__)

_VOCABULARY = 100_000
"""Prompts use tokens below this: the vocabularies of servers are larger, as a rule."""
_CONNECT_SECONDS = 10.0
_LOOK_SECONDS = 0.05
"""How often the loop looks whether it was told to stop."""
_PROBE_TOKENS = 2


Finish = Callable[[list[RowResult], int, dict[str, Any], bool], dict[str, Any]]
"""Takes the lines, how many rows were wanted, the facts, and whether the run was stopped."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A server, how it is asked, and what it is asked for."""

    client: httpx.AsyncClient
    endpoint: Endpoint
    job: BenchConf
    should_stop: Callable[[], bool]

    async def send(self, record: Record, body: dict[str, Any], begun: float) -> None:
        """One request; its tokens and how it ended are written into `record`."""
        try:
            async for piece in stream(self.client, self.endpoint, body):
                if piece.has_tokens:
                    record.arrivals.append((time.perf_counter() - begun, 1))
                if piece.usage is not None:
                    _take_usage(record, piece.usage)
            if not record.arrivals:
                record.error = f"{self.endpoint.path}: the answer has no tokens"
            record.finished = record.error is None
        except ServerError as error:
            record.error = str(error)

    async def measure(self, place: int, row: Row) -> RowResult:
        """The line of a row: warm-up, the row itself, and first tokens as far as they are missing."""
        job = self.job
        warm_up: list[Record] = []
        first_tokens: list[Record] = []
        if job.warmup_tokens:
            warm_up, _ = await self.run(place, row.warm_up(job.warmup_tokens), WARM_UP)
        measured, whole = await self.run(place, row, 0)
        if whole and (more := row.first_tokens(job.first_tokens)) is not None:
            first_tokens, whole = await self.run(place, more, FIRST_TOKENS)
        return summarize(row, Loads(measured, first_tokens, warm_up), partial=not whole)

    async def run(self, place: int, row: Row, first: int) -> tuple[list[Record], bool]:
        """The records of a row's requests, in order, and whether all of them were made."""
        job, endpoint = self.job, self.endpoint
        vocabulary = job.vocabulary or _VOCABULARY
        numbers = range(first, first + row.requests)
        prompts = [prompt(job.seed, place, number, row.input_tokens, vocabulary) for number in numbers]
        bodies = [endpoint.body(one, row.output_tokens, job.seed + number) for number, one in enumerate(prompts)]
        records: list[Record] = []
        active: set[asyncio.Task[None]] = set()
        arrivals, begun = arrivals_of(row, job.seed), time.perf_counter()
        try:
            while arrivals.left or active:
                if self.should_stop():
                    return records, False
                for number, due in arrivals.take(time.perf_counter() - begun, len(active)):
                    records.append(Record(row.input_tokens, row.output_tokens, due))
                    active.add(asyncio.create_task(self.send(records[-1], bodies[number], begun)))
                wait = arrivals.wait(time.perf_counter() - begun, len(active))
                active = await _pause(active, min(wait, _LOOK_SECONDS))
        finally:
            for task in active:
                task.cancel()
            await asyncio.gather(*active, return_exceptions=True)
        return records, True


def _take_usage(record: Record, usage: Any) -> None:
    """The server's own counts, where it gives whole numbers."""
    output, prompted = (usage.get(name) for name in ("completion_tokens", "prompt_tokens"))
    if isinstance(output, int):
        record.reported_tokens = output
    if isinstance(prompted, int) and prompted > 0:
        record.prompt_tokens = prompted


async def _pause(active: set[asyncio.Task[None]], seconds: float) -> set[asyncio.Task[None]]:
    """Until a request ends, or the time is over; those that still run. A defect in one of them is raised."""
    if not active:
        await asyncio.sleep(seconds)
        return active
    done, active = await asyncio.wait(active, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return active


async def find_endpoint(client: httpx.AsyncClient, run: RunConf) -> Endpoint:
    """How the server can be asked, found by asking it for two tokens; ServerError with its reasons if it cannot."""
    job = run.job
    assert isinstance(job, BenchConf)
    model = job.target_model or await first_model(client)
    apis = [BenchApi.completions, BenchApi.chat] if job.endpoint is BenchApi.auto else [job.endpoint]
    reasons: list[str] = []
    for api in apis:
        for forces_length in (True, False):
            endpoint = Endpoint(model, api, forces_length, run.generation.temperature, run.generation.top_p)
            try:
                await _probe(client, endpoint)
            except ServerError as error:
                reasons.append(str(error))
                if "no connection" in str(error) or "HTTP 401" in str(error) or "HTTP 403" in str(error):
                    raise ServerError(f"job.target={job.target}: {error}") from None
                continue
            for reason in reasons:
                logger.info("the server does not take it: %s", reason)
            return endpoint
    raise ServerError(f"job.target={job.target} cannot be asked for {model}: {'; '.join(dict.fromkeys(reasons))}")


async def _probe(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
    async for _ in stream(client, endpoint, endpoint.body((11, 12, 13), _PROBE_TOKENS, 0)):
        pass


def make_client(run: RunConf) -> httpx.AsyncClient:
    """Without a limit of connections; the key comes from OPENAI_API_KEY."""
    job = run.job
    assert isinstance(job, BenchConf)
    assert job.target is not None
    key = os.environ.get("OPENAI_API_KEY")
    return httpx.AsyncClient(
        base_url=job.target.rstrip("/").removesuffix("/v1"),
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(run.cluster.timeout_s, connect=_CONNECT_SECONDS),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
    )


async def measure_rows(
    run: RunConf, rows: list[Row], should_stop: Callable[[], bool]
) -> tuple[Endpoint, list[RowResult]]:
    """The line of each row; fewer than there are if told to stop."""
    job = run.job
    assert isinstance(job, BenchConf)
    results: list[RowResult] = []
    async with make_client(run) as client:
        endpoint = await find_endpoint(client, run)
        target = Target(client, endpoint, job, should_stop)
        for place, row in enumerate(rows):
            if should_stop():
                break
            logger.info("row %d of %d: %s", place + 1, len(rows), row.label)
            results.append(await target.measure(place, row))
            compare_with_limit(results[-1], Limit(None, "not known for a server elsewhere"))
            logger.info("%s", table.line(results[-1]))
    compare_contexts(results)
    return endpoint, results


def measure_target(run: RunConf, finish: Finish) -> dict[str, Any]:
    """Measure, and return what `finish` makes of it. Raises ServerError if there is no such server.

    SIGINT and SIGTERM end the measurement, and after `finish` the program with 130 and 143.
    """
    from gptoss_dist.runtime.watch import guard

    job = run.job
    assert isinstance(job, BenchConf)
    rows, failure = rows_of(job, None), None
    content: dict[str, Any] = {}
    with guard(None) as watch:
        try:
            endpoint, results = asyncio.run(measure_rows(run, rows, watch.stop_requested.is_set))
        except ServerError as error:
            failure = error
        else:
            content = finish(results, len(rows), _facts(run, endpoint), watch.stop_requested.is_set())
    if failure is not None:
        raise failure
    return content


def _facts(run: RunConf, endpoint: Endpoint) -> dict[str, Any]:
    job = run.job
    assert isinstance(job, BenchConf)
    return {
        "target": job.target,
        "model": endpoint.model,
        "endpoint": endpoint.path,
        "forces_length": endpoint.forces_length,
        "sampling": {"temperature": endpoint.temperature, "top_p": endpoint.top_p},
        **machine.facts(sys.argv[1:]),
    }
