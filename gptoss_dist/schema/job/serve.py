"""The keys of `job=serve`."""

from __future__ import annotations

from dataclasses import dataclass, field

from gptoss_dist.schema.job.base import JobConf


@dataclass
class ServeConf(JobConf):
    """The OpenAI API over HTTP, on rank 0. API keys come from GPTOSS_API_KEYS in the environment."""

    host: str = "127.0.0.1"
    port: int = 8000
    model_name: str | None = None
    any_model: bool = False
    date: str | None = "today"
    max_waiting: int = 512
    max_body_mb: float = 8.0
    max_behind: int = 16384
    store_responses: int = 1024
    store_mb: float = 256.0
    drain_s: float = 25.0
    allow_anonymous: bool = False
    cors_origins: list[str] = field(default_factory=list)
    access_log: bool = False
