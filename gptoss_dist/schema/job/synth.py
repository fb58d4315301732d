"""The keys of `job=synth`."""

from __future__ import annotations

from dataclasses import dataclass

from gptoss_dist.schema.job.base import JobConf


@dataclass
class SynthConf(JobConf):
    """A random checkpoint of real shapes."""

    size: str = "tiny"
    out: str | None = None
    seed: int = 0
    layers: int | None = None
    experts: int | None = None
    dense: bool = False
