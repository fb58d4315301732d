"""The keys of `job=doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from gptoss_dist.schema.job.base import JobConf


@dataclass
class DoctorConf(JobConf):
    """What is looked at before a run; `hash` reads every staged file whole."""

    hash: bool = False
