"""The present state of a server as gauges: queue, requests, pages of the cache, ranks."""

from __future__ import annotations

from typing import Protocol

from gptoss_dist.engine.stats import EngineStats
from gptoss_dist.server.metrics import Gauge

_POOLS = ("full", "sliding")
_STATES = ("free", "held", "cached")


class Observable(Protocol):
    """What is needed of a Service."""

    stats: EngineStats | None
    ranks: dict[int, bool]

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""

    @property
    def waiting(self) -> int:
        """Requests without a first token."""

    @property
    def open_requests(self) -> int:
        """Requests that are not finished."""


def gauges_of(service: Observable) -> list[Gauge]:
    """All gauges; those of the engine after its first step."""
    ranks: dict[tuple[str, ...], float] = {(str(rank),): float(alive) for rank, alive in service.ranks.items()}
    gauges = [
        Gauge("gptoss_ready", "1 while requests are taken.", (), {(): float(service.is_ready)}),
        Gauge("gptoss_requests_queued", "Requests without a first token.", (), {(): service.waiting}),
        Gauge("gptoss_requests_open", "Requests that are not finished.", (), {(): service.open_requests}),
        Gauge("gptoss_rank_up", "1 while the rank is alive.", ("rank",), ranks),
    ]
    return gauges if service.stats is None else gauges + _of_engine(service.stats)


def _of_engine(stats: EngineStats) -> list[Gauge]:
    replicas = {str(index): one for index, one in enumerate(stats.replicas)}

    def by_replica(field: str) -> dict[tuple[str, ...], float]:
        return {(index,): float(getattr(one, field)) for index, one in replicas.items()}

    pages: dict[tuple[str, ...], float] = {
        (index, pool, state): float(getattr(getattr(one, pool), state))
        for index, one in replicas.items()
        for pool in _POOLS
        for state in _STATES
    }
    total: dict[tuple[str, ...], float] = {
        (index, pool): float(getattr(one, pool).total) for index, one in replicas.items() for pool in _POOLS
    }
    return [
        Gauge("gptoss_requests_waiting", "Requests without pages.", ("replica",), by_replica("waiting")),
        Gauge("gptoss_requests_running", "Requests that hold pages.", ("replica",), by_replica("running")),
        Gauge("gptoss_preemptions", "How often a request gave way.", ("replica",), by_replica("preemptions")),
        Gauge("gptoss_kv_pages", "Pages of the cache.", ("replica", "pool", "state"), pages),
        Gauge("gptoss_kv_pages_in_all", "Pages there are.", ("replica", "pool"), total),
    ]
