"""The keys of `job=bench`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from gptoss_dist.schema.job.base import JobConf


class BenchSuite(Enum):
    """Which loads are measured: the rows that the job's keys make, or a table of one, many and long ones."""

    rows = "rows"
    table = "table"


class BenchApi(Enum):
    """How a server is asked: by token ids, by a chat message, or by the first of both that it takes."""

    auto = "auto"
    completions = "completions"
    chat = "chat"


@dataclass
class BenchConf(JobConf):
    """A load, measured: on the engine here, or with `target` on a server that speaks OpenAI's API."""

    suite: BenchSuite = BenchSuite.rows
    streams: list[int] = field(default_factory=lambda: [1])
    input_tokens: int = 1024
    output_tokens: int = 1024
    rounds: int = 2
    first_tokens: int = 16
    requests: int | None = None
    rate: float | None = None
    prefill: list[str] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)
    context_output_tokens: int = 256
    warmup_tokens: int = 16
    seed: int = 0
    plot: str | None = None
    target: str | None = None
    target_model: str | None = None
    endpoint: BenchApi = BenchApi.auto
    vocabulary: int | None = None
    soak_s: float | None = None
    sample_s: float = 5.0
    cancel_share: float = 0.1
    growth_mb_per_min: float = 20.0
