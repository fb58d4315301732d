"""The keys of `job=tiny`."""

from __future__ import annotations

from dataclasses import dataclass

from gptoss_dist.schema.job.base import JobConf


@dataclass
class TinyConf(JobConf):
    """The trained stand-in."""

    force: bool = False
