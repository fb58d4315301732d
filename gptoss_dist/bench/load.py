"""What is measured: rows of load, made of a job's keys, and the random prompts they send."""

from __future__ import annotations

import dataclasses
import random
import re
from dataclasses import dataclass
from enum import Enum

from gptoss_dist.errors import ConfigError
from gptoss_dist.schema.job.bench import BenchConf, BenchSuite

BASELINE_TOKENS = 1024
"""Prompt of the one stream that long contexts are compared with."""
WARM_UP = 1_000_000
"""Added to the numbers of a warm-up's prompts, so that no prompt comes twice and finds itself in a cache."""
FIRST_TOKENS = 2_000_000
"""The same for the prompts of which the first token alone is wanted."""
_TABLE_STREAMS, _TABLE_PREFILL, _TABLE_CONTEXTS = (1, 64), ("8192", "64x1024"), (32768, 131072)


class Kind(Enum):
    """What a row is about."""

    decode = "decode"
    prefill = "prefill"
    context = "context"


_COUNTS = ("input_tokens", "output_tokens", "rounds", "first_tokens", "context_output_tokens")


@dataclass(frozen=True)
class Row:
    """One load: `streams` at once (0 where `rate` requests arrive a second), all prompts and outputs of one length."""

    kind: Kind
    streams: int
    input_tokens: int
    output_tokens: int
    requests: int
    rate: float | None = None

    @property
    def label(self) -> str:
        """As the table names it."""
        lengths = f"{self.input_tokens}/{self.output_tokens}"
        if self.kind is Kind.prefill:
            return f"prefill {self.streams}x{self.input_tokens}"
        if self.rate is not None:
            return f"{self.rate:g} a second, {lengths}"
        if self.kind is Kind.context:
            return f"context {self.input_tokens}/{self.output_tokens}"
        return f"{self.streams} stream{'s' if self.streams > 1 else ''}, {lengths}"

    @property
    def tokens(self) -> int:
        """Tokens of one request at its end."""
        return self.input_tokens + self.output_tokens

    def warm_up(self, output_tokens: int) -> Row:
        """The same load in short: one request a stream, that ends after `output_tokens` tokens."""
        streams = self.streams or 1
        shorter = min(self.output_tokens, output_tokens)
        return dataclasses.replace(self, streams=streams, requests=streams, output_tokens=shorter, rate=None)

    def first_tokens(self, prompts: int) -> Row | None:
        """What makes up `prompts` first tokens of one stream: the prompts that are missing, with one token out each.

        None where none is missing, where many streams give as many, and for long contexts, which would take minutes.
        """
        missing = prompts - self.requests
        if self.streams != 1 or self.kind is Kind.context or missing < 1:
            return None
        return dataclasses.replace(self, requests=missing, output_tokens=1)


def check_load(job: BenchConf) -> None:
    """Raise ConfigError for numbers that no load can be made of."""
    counts = {name: getattr(job, name) for name in _COUNTS}
    for name, value in {**counts, "requests": job.requests}.items():
        if value is not None and value < 1:
            raise ConfigError(f"job.{name}={value}: must be 1 or more.")
    for name, values in (("streams", job.streams), ("contexts", job.contexts)):
        if any(value < 1 for value in values):
            raise ConfigError(f"job.{name}={list(values)}: each must be 1 or more.")
    for text in job.prefill:
        prompts_of(text)
    positive = {"rate": job.rate, "soak_s": job.soak_s, "sample_s": job.sample_s, "growth_mb_per_min": None}
    for name, number in {**positive, "growth_mb_per_min": job.growth_mb_per_min}.items():
        if number is not None and not 0 < number < 1e9:
            raise ConfigError(f"job.{name}={number}: must be above 0.")
    if job.warmup_tokens < 0 or (job.vocabulary is not None and job.vocabulary < 1):
        raise ConfigError("job.warmup_tokens must be 0 (no warm-up) or more, and job.vocabulary 1 or more.")
    if not 0 <= job.cancel_share <= 1:
        raise ConfigError(f"job.cancel_share={job.cancel_share}: 0 up to 1.")
    if job.soak_s is not None and not job.streams:
        raise ConfigError("job.soak_s keeps as many requests under way as the highest of job.streams, which is empty.")
    if job.suite is BenchSuite.rows and not (job.streams or job.prefill or job.contexts):
        raise ConfigError("There is nothing to measure: give job.streams, job.prefill or job.contexts.")


def prompts_of(text: str) -> tuple[int, int]:
    """Number and length of the prompts in `64x1024`, or in `8192`, which is one. ConfigError for anything else."""
    found = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)", str(text))
    if found is None:
        raise ConfigError(f"job.prefill={text}: a number of tokens (8192), or prompts times tokens (64x1024).")
    return int(found[1] or 1), int(found[2])


def rows_of(job: BenchConf, context: int | None) -> list[Row]:
    """The rows of a job, in the order in which they run.

    `context` is the most tokens that the model takes: the prompts of job.contexts leave room for their output. None:
    not known.
    """
    table = job.suite is BenchSuite.table
    streams = _TABLE_STREAMS if table else tuple(job.streams)
    prefill = _TABLE_PREFILL if table else tuple(job.prefill)
    contexts = _TABLE_CONTEXTS if table else tuple(job.contexts)
    lengths = (job.input_tokens, job.output_tokens)
    if job.rate is not None:
        rows = [Row(Kind.decode, 0, *lengths, job.requests or 100, job.rate)]
    else:
        rows = [Row(Kind.decode, count, *lengths, job.requests or count * job.rounds) for count in streams]
    for text in prefill:
        count, tokens = prompts_of(text)
        rows.append(Row(Kind.prefill, count, tokens, 1, count))
    base = [row for row in rows if row.kind is Kind.decode and (row.streams, row.input_tokens) == (1, BASELINE_TOKENS)]
    if contexts and not base:
        rows.append(_context_row(BASELINE_TOKENS, job, context))
    return rows + [_context_row(tokens, job, context) for tokens in contexts]


def _context_row(tokens: int, job: BenchConf, context: int | None) -> Row:
    outputs = job.context_output_tokens
    if context is not None and tokens <= context:
        tokens = max(1, min(tokens, context - outputs))
    return Row(Kind.context, 1, tokens, outputs, 1)


def prompt(seed: int, row: int, request: int, tokens: int, vocabulary: int) -> tuple[int, ...]:
    """`tokens` random tokens below `vocabulary`, the same for the same numbers, no two prompts beginning alike."""
    generator = random.Random(f"{seed} {row} {request}")
    return tuple(generator.choices(range(vocabulary), k=tokens))
