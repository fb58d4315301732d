"""The keys of `job=prefetch`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from gptoss_dist.schema.job.base import JobConf


class Staging(Enum):
    """What `gptoss prefetch` brings: one kind of thing, or all that the model needs."""

    all = "all"
    weights = "weights"
    kernels = "kernels"
    vocab = "vocab"


@dataclass
class PrefetchConf(JobConf):
    """What to stage for a machine without a network, and where."""

    what: Staging = Staging.all
    out: str | None = None
    torch: str | None = None
    workers: int = 8
