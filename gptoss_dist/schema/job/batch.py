"""The keys of `job=batch`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from gptoss_dist.schema.job.base import JobConf


class BatchOrder(Enum):
    """In which order the records of a share are begun."""

    in_order = "in_order"
    longest_first = "longest_first"


@dataclass
class BatchConf(JobConf):
    """Many prompts in files. `input`: a text, or a list of texts."""

    input: Any = None
    column: str | None = None
    output: str | None = None
    order: BatchOrder = BatchOrder.in_order
    share: int | None = None
    window: int | None = None
    worker: str | None = None
    stale_s: float = 60.0
    grace_s: float = 20.0
    date: str | None = None
    functions: str | None = None
    rounds: int = 8
    function_s: float = 60.0
    keep_parts: bool = False
