"""The rows of a job on the engine of this session: does it fit, warm up, measure, compare with the limit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gptoss_dist.bench.arrivals import ClosedLoop, arrivals_of
from gptoss_dist.bench.driver import Driver
from gptoss_dist.bench.load import FIRST_TOKENS, WARM_UP, Kind, Row, prompt
from gptoss_dist.bench.records import Loads, Record, Records
from gptoss_dist.bench.statistics import RowResult, blank, compare_with_limit, summarize
from gptoss_dist.bench.table import line
from gptoss_dist.ceilings import Ceiling
from gptoss_dist.engine.engine import Engine
from gptoss_dist.engine.request import Request, Sampling
from gptoss_dist.errors import DoesNotFitError
from gptoss_dist.limits import Limit, Placement, decode_limit, prefill_limit
from gptoss_dist.schema.generation import GenerationConf
from gptoss_dist.schema.job.bench import BenchConf

TEXT_TOKENS = 199998
"""Tokens of gpt-oss' vocabulary below its control tokens."""


@dataclass(frozen=True)
class Bench:
    """What a measurement of rows needs to know."""

    engine: Engine
    driver: Driver
    job: BenchConf
    generation: GenerationConf
    vocabulary: int
    placement: Placement
    ceiling: Ceiling | None
    max_running: int
    """Requests that a replica runs at once."""

    def sampling(self, max_tokens: int, number: int) -> Sampling:
        """Of request `number`: as the run's generation says, but nothing ends it before `max_tokens`."""
        generation = self.generation
        return Sampling(
            max_tokens=max_tokens,
            temperature=generation.temperature,
            top_p=generation.top_p,
            top_k=generation.top_k,
            min_p=generation.min_p,
            seed=(generation.seed or 0) + number,
        )


def measure(
    bench: Bench, rows: Sequence[Row], should_stop: Callable[[], bool], say: Callable[[str], None]
) -> Iterator[RowResult]:
    """The line of each row, as soon as it is known; ends early, with a line of what there is, if told to stop."""
    for place, row in enumerate(rows):
        if should_stop():
            return
        say(f"row {place + 1} of {len(rows)}: {row.label}")
        problem = does_not_fit(bench, row)
        if problem is None:
            try:
                result = _measure(bench, place, row)
                say(line(result))
                yield result
                continue
            except DoesNotFitError as error:
                problem = str(error)
        result = blank(row, f"does not fit: {problem}")
        compare_with_limit(result, limit_of(bench, row))
        yield result


def first_token(bench: Bench) -> None:
    """Generate one token, and with it load or compile whatever an engine leaves to its first request."""
    request = Request("first", (1,), bench.sampling(1, 0))
    bench.driver.run(ClosedLoop(1, 1), lambda name, _: dataclasses.replace(request, id=name), Records())


def does_not_fit(bench: Bench, row: Row) -> str | None:
    """Why the requests of a row could not all run at once, with the numbers; None if they can."""
    limit, share = bench.engine.context, bench.placement.share(row.streams or 1)
    if row.tokens > limit:
        return f"{row.input_tokens} + {row.output_tokens} tokens, and model or cache take {limit}"
    if share > bench.max_running:
        return f"{share} streams of a replica, and engine.max_running={bench.max_running}"
    most = bench.engine.at_once(Request("fits", (0,) * row.input_tokens, Sampling(row.output_tokens)))
    if share > most:
        return (
            f"{share} requests of {row.tokens} tokens at once, and there is room for {most} of them; raise "
            "engine.cache_tokens or take more ranks"
        )
    return None


def limit_of(bench: Bench, row: Row) -> Limit:
    """The hardware's limit of a row: with half of the output in the context, or of all its prompts at once."""
    if row.rate is not None:
        return Limit(None)
    if row.kind is Kind.prefill:
        return prefill_limit(bench.placement, bench.ceiling, row.streams, row.input_tokens)
    context = row.input_tokens + row.output_tokens / 2
    return decode_limit(bench.placement, bench.ceiling, row.streams, context)


def _measure(bench: Bench, place: int, row: Row) -> RowResult:
    warm_up: list[Record] = []
    if bench.job.warmup_tokens:
        warm_up, whole = _load(bench, place, row.warm_up(bench.job.warmup_tokens), WARM_UP)
        if not whole:
            return blank(row, "partial")
    first_tokens: list[Record] = []
    measured, whole = _load(bench, place, row, 0)
    if whole and (more := row.first_tokens(bench.job.first_tokens)) is not None:
        first_tokens, whole = _load(bench, place, more, FIRST_TOKENS)
    result = summarize(row, Loads(measured, first_tokens, warm_up), partial=not whole)
    compare_with_limit(result, limit_of(bench, row))
    return result


def _load(bench: Bench, place: int, row: Row, first: int) -> tuple[list[Record], bool]:
    """The records of a load whose prompts are numbered from `first`, and whether it went to its end."""
    records = Records()
    whole = bench.driver.run(arrivals_of(row, bench.job.seed), _maker(bench, place, row, first), records)
    return list(records.by_number.values()), whole


def _maker(bench: Bench, place: int, row: Row, first: int) -> Callable[[str, int], Request]:
    """Makes the requests of a row; all prompts are drawn now, for the driver has no time to."""
    numbers = range(first, first + row.requests)
    prompts = [prompt(bench.job.seed, place, number, row.input_tokens, bench.vocabulary) for number in numbers]
    return lambda name, number: Request(name, prompts[number], bench.sampling(row.output_tokens, number))
