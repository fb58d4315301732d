"""The keys of `generation`: how tokens are chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from gptoss_dist.schema.node import Node


class Effort(Enum):
    """Reasoning effort, as gpt-oss was trained to read it in the harmony system message."""

    low = "low"
    medium = "medium"
    high = "high"


@dataclass
class GenerationConf(Node):
    """How tokens are chosen. `temperature=0` is greedy; without a `seed` rank 0 draws one and says it.

    `max_new_tokens`: null lets an answer go on to its end, or that of the model's context.
    """

    max_new_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    reasoning_effort: Effort = Effort.medium
