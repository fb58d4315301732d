"""What an engine is asked for, and what it answers: token ids only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from gptoss_dist.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one request are chosen. `temperature=0` is greedy and reads no other field of chance."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    seed: int = 0
    stop_tokens: tuple[int, ...] = ()
    """A token of these ends the request; it is the last token of the output."""


@dataclass(frozen=True)
class Request:
    """One prompt. `id` is the caller's and unique among the requests that are not finished."""

    id: str
    prompt: tuple[int, ...]
    sampling: Sampling

    def __post_init__(self) -> None:
        """Refuse a prompt without tokens: there would be nothing to continue."""
        if not self.prompt:
            raise ConfigError(f"request {self.id}: the prompt has no tokens. Give it at least one.")


class Finish(Enum):
    """Why a request ended."""

    stop = "stop"
    length = "length"
    cancelled = "cancelled"


@dataclass(frozen=True)
class Event:
    """New tokens of one request, in order; `finish` is set on its last event and only there."""

    request_id: str
    tokens: tuple[int, ...]
    finish: Finish | None = None
