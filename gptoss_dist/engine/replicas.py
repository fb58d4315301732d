"""What every engine does around its model: requests come in on rank 0, replicas share them, all ranks see all events.

    rank 0: submit, cancel, release ─► inbox ─► broadcast ─► placed on a replica ─► its step ─► report ─┐
                                                                                                        │
    every rank: the same events, the same statistics, the same error  ◄── gathered if there are several ┘

Only what comes from outside is broadcast. Everything else follows from it on every rank alike: there is no clock, and
nothing depends on the order of a set.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

from gptoss_dist.engine.engine import Engine
from gptoss_dist.engine.placement import Placement
from gptoss_dist.engine.request import Event, Request, check_request
from gptoss_dist.engine.stats import EngineStats, ReplicaStats
from gptoss_dist.errors import ConfigError, LogitsError
from gptoss_dist.model.load import Loaded
from gptoss_dist.runtime.agree import TokenFingerprint
from gptoss_dist.runtime.dist import RankGroup
from gptoss_dist.runtime.mesh import Ranks


@dataclass
class _Inbox:
    """What rank 0 queued since the last step."""

    requests: list[Request] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    release: bool = False


@dataclass(frozen=True)
class _Report:
    """What a replica tells the others after a step."""

    events: list[Event]
    stats: ReplicaStats
    failure: LogitsError | None = None


class ReplicatedEngine(Engine):
    """An engine whose subclass knows one replica: `_admit`, `_drop`, `_compute`, `_describe`, and what to refuse."""

    def __init__(
        self, loaded: Loaded, group: RankGroup, ranks: Ranks, agree_every: int, page_size: int | None = None
    ) -> None:
        """`agree_every` steps lie between two comparisons of what the ranks generated (0: never).

        `page_size`: of the pages that keep prefixes for later requests; None if there are none.
        """
        self._group, self._ranks, self._shape = group, ranks, loaded.checkpoint.shape
        self._agree_every = agree_every
        self._fingerprint = TokenFingerprint(ranks.dp_rank)
        self._inbox = _Inbox()
        self._placement = Placement(ranks.dp, page_size)
        self._steps = 0
        self._released = False
        self._stats: tuple[ReplicaStats, ...] = (ReplicaStats(),) * ranks.dp

    @property
    def has_work(self) -> bool:
        """See `Engine.has_work`."""
        return len(self._placement) > 0

    def submit(self, request: Request) -> None:
        """Queue a request; see `Engine.submit`."""
        if self._group.rank != 0:
            return
        if self._is_under_way(request.id):
            raise ConfigError(f"request {request.id}: a request of this id is under way. Ids are unique.")
        check_request(request, self._shape.vocab, self._shape.max_position)
        self._check_fits(request)
        self._inbox.requests.append(request)

    def cancel(self, request_id: str) -> None:
        """End a request; see `Engine.cancel`."""
        if self._group.rank == 0 and self._is_under_way(request_id):  # else a later request of this id would be hit
            self._inbox.cancelled.append(request_id)

    def release(self) -> None:
        """See `Engine.release`."""
        self._inbox.release = True

    def follow(self) -> None:
        """See `Engine.follow`."""
        self._released = False
        while not self._released:
            self.step()

    def step(self) -> list[Event]:
        """See `Engine.step`."""
        mine = self._take_in()
        failure: LogitsError | None = None
        self._steps += 1
        try:
            mine += self._compute()
        except LogitsError as error:  # the only one that all ranks of the replica are sure to have met
            if self._ranks.dp == 1:
                raise
            failure = error  # the other replicas wait for this one's report
        events = self._shared(_Report(mine, self._describe(), failure))
        for event in events:
            self._placement.follow(event)
        self._compare(mine)
        return events

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        return EngineStats(self._stats, self._steps)

    @abstractmethod
    def _check_fits(self, request: Request) -> None:
        """On rank 0: raise DoesNotFitError if the request could never be finished."""

    @abstractmethod
    def _admit(self, request: Request) -> None:
        """A request of this replica."""

    @abstractmethod
    def _drop(self, request_id: str) -> Event | None:
        """End a request of this replica; its last event, or None if it is unknown."""

    @abstractmethod
    def _compute(self) -> list[Event]:
        """One step of this replica. A LogitsError is raised on every rank of it alike; any other ends the rank."""

    @abstractmethod
    def _describe(self) -> ReplicaStats:
        """This replica in numbers."""

    def _is_under_way(self, request_id: str) -> bool:
        return request_id in self._placement or any(one.id == request_id for one in self._inbox.requests)

    def _take_in(self) -> list[Event]:
        """What rank 0 queued; the events of what it cancelled on this replica."""
        inbox, self._inbox = self._group.broadcast_object(self._inbox), _Inbox()
        self._released = self._released or inbox.release
        for request in inbox.requests:
            if self._placement.place(request) == self._ranks.dp_rank:
                self._admit(request)
        events = []
        for name in inbox.cancelled:
            if self._placement.replica(name) == self._ranks.dp_rank and (event := self._drop(name)):
                events.append(event)
        return events

    def _shared(self, mine: _Report) -> list[Event]:
        """The events of all replicas, in the replicas' order, on every rank; raises the first failure of any."""
        reports = [mine]
        if self._ranks.dp > 1:
            gathered = self._group.all_gather_object(mine if self._ranks.leads_replica else None)
            reports = [report for report in gathered if report is not None]
        for report in reports:
            if report.failure is not None:
                raise report.failure
        self._stats = tuple(report.stats for report in reports)
        return [event for report in reports for event in report.events]

    def _compare(self, mine: list[Event]) -> None:
        """Within each replica what its ranks generated themselves: what was shared came from one of them."""
        if not self._agree_every or self._group.world_size == 1:
            return
        for event in mine:
            self._fingerprint.update(event.tokens)
        if self._steps % self._agree_every == 0:
            self._fingerprint.check(self._group)
