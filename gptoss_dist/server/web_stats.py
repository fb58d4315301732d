"""What /stats says, for the web page and for people with curl."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import Any

from gptoss_dist.engine.stats import EngineStats, PoolStats
from gptoss_dist.server.api_error import ApiError
from gptoss_dist.server.recent import LATENCY_S, SPEED_S, Rates
from gptoss_dist.server.service import Service, State

_POOLS = ("full", "sliding")


def stats_of(service: Service, rates: Rates, uptime_s: float) -> dict[str, Any]:
    """The present state; pages are those of all replicas together, and None before the engine's first step."""
    status, why = _status(service)
    engine = service.stats
    return {
        "status": status,
        "why": why,
        "model": _model(service),
        "about": {**service.about, "version": _version()},
        "uptime_s": round(uptime_s, 1),
        "requests": {
            "queued": service.waiting,
            "open": service.open_requests,
            "running": engine.running if engine else 0,
            "waiting": engine.waiting if engine else 0,
            "preemptions": engine.preemptions if engine else 0,
        },
        "pages": {pool: _pages(engine, pool) for pool in _POOLS} if engine else None,
        "tokens_per_s": {"prompt": rates.prompt, "generated": rates.generated, "over_s": SPEED_S},
        "latency_s": {
            "first_token": dataclasses.asdict(rates.first_token),
            "inter_token": dataclasses.asdict(rates.inter_token),
            "over_s": LATENCY_S,
        },
        "ranks": {
            "total": len(service.ranks),
            "dead": sorted(rank for rank, is_alive in service.ranks.items() if not is_alive),
        },
    }


def _status(service: Service) -> tuple[str, str | None]:
    """As /ready says it, and why it is not ready."""
    try:
        service.check_open()
    except ApiError as error:
        return service.state.value, error.message
    if not service.is_ready and service.state is State.ready:
        return "stuck", "a step of the engine takes unusually long."
    return service.state.value, None


def _model(service: Service) -> dict[str, Any] | None:
    """None while it is being loaded."""
    try:
        return {"name": service.model.name, "context": service.model.context}
    except ApiError:
        return None


def _pages(engine: EngineStats, name: str) -> dict[str, int]:
    pools: list[PoolStats] = [getattr(replica, name) for replica in engine.replicas]
    fields = [field.name for field in dataclasses.fields(PoolStats)]
    return {field: sum(getattr(pool, field) for pool in pools) for field in fields}


def _version() -> str:
    """Of the installed package."""
    try:
        return importlib.metadata.version("gptoss-dist")
    except importlib.metadata.PackageNotFoundError:
        return "unknown: run from its sources"
