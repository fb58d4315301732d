"""What rank 0 does for all replicas: it deals requests out among them, and gathers what they report.

    submit, cancel, release ─► placed ─┬─► orders of replica 0, which rank 0 itself leads
                                       ├─► orders ── channel ──► rank that leads replica 1 ─┐
                                       └─► orders ── channel ──► …                          │
    events, statistics, a failure  ◄──────────────── channel ◄──────────────── reports ◄────┘

Nobody waits here for a replica that computes: orders lie in the channel until it looks for them between two steps, and
reports lie there until rank 0 does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gptoss_dist.engine.placement import Placement
from gptoss_dist.engine.request import Event, Request
from gptoss_dist.engine.stats import ReplicaStats
from gptoss_dist.errors import GptOssDistError
from gptoss_dist.runtime.channels import Channels

_LEADS_FIRST = 0
"""The replica that rank 0 leads."""


@dataclass
class Orders:
    """What a replica is told before a step. In one of them a request comes before its cancellation."""

    requests: list[Request] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    release: bool = False
    failure: GptOssDistError | None = None
    """Why the run ends, on another replica: every rank raises it."""


@dataclass(frozen=True)
class Report:
    """What a replica tells after a step."""

    events: list[Event]
    stats: ReplicaStats
    released: bool = False
    """Whether it was the last before the ranks stop following."""
    failure: GptOssDistError | None = None


class Dispatch:
    """Rank 0's view of all replicas."""

    def __init__(self, replicas: int, tp: int, page_size: int | None, channels: Channels | None) -> None:
        """`channels` to the ranks that lead replicas, every `tp`-th; None where there is one replica.

        `page_size`: of the pages that keep prefixes for later requests; None if there are none.
        """
        self._tp, self._channels = tp, channels
        self._placement = Placement(replicas, page_size)
        self._queued: dict[str, Request] = {}
        self._cancelled: list[str] = []
        self._release = False
        self._unreleased: set[int] = set()
        self.stats = [ReplicaStats()] * replicas
        """Of each replica after the last step that it has told of."""

    def __contains__(self, request_id: str) -> bool:
        """Whether the request is unfinished."""
        return request_id in self._placement or request_id in self._queued

    @property
    def has_work(self) -> bool:
        """Whether a request is unfinished."""
        return bool(self._queued) or len(self._placement) > 0

    def submit(self, request: Request) -> None:
        """Queue a request, whose id is no other's."""
        self._queued[request.id] = request

    def cancel(self, request_id: str) -> None:
        """Queue a cancellation; ids that are unknown or finished are ignored."""
        if request_id in self:  # else a later request of this id would be hit
            self._cancelled.append(request_id)

    def release(self) -> None:
        """With the next orders: they are the last before the ranks stop following."""
        self._release = True

    def send(self) -> Orders | None:
        """Send every replica what was queued for it; the orders of the first, None if it has none."""
        if not (self._queued or self._cancelled or self._release):
            return None
        orders: dict[int, Orders] = {}
        for request in self._queued.values():
            orders.setdefault(self._placement.place(request), Orders()).requests.append(request)
        for name in self._cancelled:
            if (replica := self._placement.replica(name)) is not None:
                orders.setdefault(replica, Orders()).cancelled.append(name)
        if self._release:
            self._unreleased = set(range(1, len(self.stats)))
            for replica in range(len(self.stats)):
                orders.setdefault(replica, Orders()).release = True
        self._queued, self._cancelled, self._release = {}, [], False
        own = orders.pop(_LEADS_FIRST, None)
        for replica, content in orders.items():
            self._send(replica, content)
        return own

    def fail(self, failure: GptOssDistError) -> None:
        """Tell the other replicas why the run ends."""
        for replica in range(1, len(self.stats)):
            self._send(replica, Orders(failure=failure))

    def gather(self, wait_s: float) -> list[Event]:
        """Events of the other replicas that have arrived; if there are none, wait up to `wait_s` seconds for a report.

        After `release` wait for all replicas. Raises what a replica fails with, and RankError for one that has ended.
        """
        events: list[Event] = []
        if self._channels is None:
            return events
        while True:
            for rank, report in self._channels.receive(1.0 if self._unreleased else wait_s):
                events += self._take(rank // self._tp, report)
            if not self._unreleased:
                return events

    def follow(self, events: list[Event]) -> None:
        """Take in what happened to requests."""
        for event in events:
            self._placement.follow(event)

    def _take(self, replica: int, report: Report) -> list[Event]:
        if report.failure is not None:
            raise report.failure
        self.stats[replica] = report.stats
        if report.released:
            self._unreleased.discard(replica)
        return report.events

    def _send(self, replica: int, orders: Orders) -> None:
        if self._channels is not None:
            self._channels.send(replica * self._tp, orders)
