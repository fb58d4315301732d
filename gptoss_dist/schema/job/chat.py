"""The keys of `job=chat`."""

from __future__ import annotations

from dataclasses import dataclass

from gptoss_dist.schema.job.base import JobConf


@dataclass
class ChatConf(JobConf):
    """A conversation in the terminal, with the model on these ranks, or with a server at `target`."""

    target: str | None = None
    target_model: str | None = None
    system: str | None = None
    tools: str | None = None
    date: str | None = None
    show_analysis: bool = True
