"""The keys of `job=plan`; `PlanConf` are those of the group `plan`."""

from __future__ import annotations

from dataclasses import dataclass, field

from gptoss_dist.schema.job.base import JobConf


@dataclass
class PlanJobConf(JobConf):
    """What a plan gives each rank, without a GPU and without the weights."""

    context: int = 8192
    ranks: int | None = None
    gpu: str | None = None
    streams: list[int] = field(default_factory=lambda: [1, 64])
    plot: str | None = None
