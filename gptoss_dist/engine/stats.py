"""How an engine is doing, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from gptoss_dist.engine.pages import PagePool
from gptoss_dist.engine.scheduler import Scheduler


@dataclass(frozen=True)
class PoolStats:
    """Pages of one kind of layers: `free`, `held` by requests or `cached` for their content, `total` together."""

    total: int = 0
    free: int = 0
    held: int = 0
    cached: int = 0

    @staticmethod
    def of(pool: PagePool) -> PoolStats:
        """The numbers of a pool."""
        return PoolStats(pool.page_count, pool.free, pool.held, pool.cached)


@dataclass(frozen=True)
class ReplicaStats:
    """One replica after its last step; pools are zero where the engine has no pages."""

    waiting: int = 0
    running: int = 0
    preemptions: int = 0
    generated: int = 0
    """Tokens so far."""
    full: PoolStats = field(default_factory=PoolStats)
    sliding: PoolStats = field(default_factory=PoolStats)

    @property
    def has_work(self) -> bool:
        """Whether a request is not finished."""
        return self.running + self.waiting > 0

    @staticmethod
    def of(scheduler: Scheduler) -> ReplicaStats:
        """The numbers of a replica that this scheduler plans."""
        full, sliding = scheduler.pools
        return ReplicaStats(
            waiting=len(scheduler.waiting),
            running=len(scheduler.running),
            preemptions=scheduler.preemptions,
            generated=scheduler.generated,
            full=PoolStats.of(full),
            sliding=PoolStats.of(sliding),
        )


@dataclass(frozen=True)
class EngineStats:
    """All replicas, in their order."""

    replicas: tuple[ReplicaStats, ...]
    steps: int

    @property
    def waiting(self) -> int:
        """Requests that wait on any replica."""
        return sum(one.waiting for one in self.replicas)

    @property
    def running(self) -> int:
        """Requests that run on any replica."""
        return sum(one.running for one in self.replicas)

    @property
    def preemptions(self) -> int:
        """How often a request gave way so far."""
        return sum(one.preemptions for one in self.replicas)

    @property
    def generated(self) -> int:
        """Tokens so far."""
        return sum(one.generated for one in self.replicas)
