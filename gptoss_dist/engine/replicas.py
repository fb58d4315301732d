"""What every engine does around its model: the ranks of a replica step together, and replicas not.

    rank 0          submit, cancel, release ─► Dispatch ─► orders ─┐          events of all replicas ◄─ Dispatch
                                                   │               ▼                                      ▲
    replica 0                                      │          broadcast ─► step ─► events ────────────────┤
    replica 1                                      └─ orders ─► broadcast ─► step ─► report of its leader ┘

The leader of a replica is its first rank; that of replica 0 is rank 0. Within a replica only what its leader was told
is broadcast. Everything else follows from it on all its ranks alike: there is no clock, and nothing depends on the
order of a set.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence

from gptoss_dist.engine.dispatch import Dispatch, Orders, Report
from gptoss_dist.engine.engine import Engine, nothing
from gptoss_dist.engine.request import Event, Request, check_request
from gptoss_dist.engine.stats import EngineStats, ReplicaStats
from gptoss_dist.engine.work import Running, Work, at_once
from gptoss_dist.errors import ConfigError, EngineError, GptOssDistError, RankError
from gptoss_dist.model.load import Loaded
from gptoss_dist.runtime.agree import TokenFingerprint
from gptoss_dist.runtime.dist import RankGroup
from gptoss_dist.runtime.mesh import Ranks
from gptoss_dist.runtime.open_channels import open_channels

_GATHER_SECONDS = 1e-3
"""How long rank 0 waits for reports, or for the device of its own replica: requests may have come meanwhile."""
_NAP_SECONDS = 2e-5
"""Between two looks whether the device is done. Mostly it has the next step already, and being late costs nothing."""
_ORDERS_SECONDS = 1.0
"""How long the leader of an idle replica waits for orders before it waits again."""


class ReplicatedEngine(Engine):
    """An engine whose subclass knows one replica: `_admit`, `_drop`, `_compute`, `_describe`, and what to refuse."""

    def __init__(
        self, loaded: Loaded, group: RankGroup, ranks: Ranks, agree_every: int, page_size: int | None = None
    ) -> None:
        """Connect rank 0 with the leaders of the other replicas, if there are any. Collective.

        `agree_every` steps lie between two comparisons of what the ranks of a replica generated (0: never).
        `page_size`: of the pages that keep prefixes for later requests; None if there are none.
        """
        self._rank, self._ranks, self._shape = group.rank, ranks, loaded.checkpoint.shape
        self._replica = group.part(ranks.tp)
        leaders = range(ranks.tp, ranks.dp * ranks.tp, ranks.tp)
        self._channels = open_channels(self._rank, leaders, group.broadcast_object) if leaders else None
        self._dispatch = Dispatch(ranks.dp, ranks.tp, page_size, self._channels)
        self._agree_every = agree_every
        self._fingerprint = TokenFingerprint(range(self._replica.first, self._replica.first + ranks.tp))
        self._described = ReplicaStats()
        """This replica after its last step."""
        self._told: list[Orders] = []
        """On rank 0: what its replica is told with its next step."""
        self._current: Running | None = None
        """On rank 0: the step of its replica that is under way."""
        self._broken_by: BaseException | None = None
        """On rank 0: what a step ended with before its end."""
        self._steps = 0
        self._released = False

    @property
    def has_work(self) -> bool:
        """See `Engine.has_work`."""
        return self._dispatch.has_work

    def submit(self, request: Request) -> None:
        """Queue a request; see `Engine.submit`."""
        if self._rank != 0:
            return
        if request.id in self._dispatch:
            raise ConfigError(f"request {request.id}: a request of this id is under way. Ids are unique.")
        check_request(request, self._shape.vocab, self._shape.max_position)
        self._check_fits(request)
        self._dispatch.submit(request)

    def cancel(self, request_id: str) -> None:
        """End a request; see `Engine.cancel`."""
        self._dispatch.cancel(request_id)

    def release(self) -> None:
        """See `Engine.release`."""
        self._dispatch.release()

    def step(self) -> list[Event]:
        """See `Engine.step`."""
        if self._broken_by is not None:
            raise EngineError(
                f"a step of this engine did not come to its end ({_named(self._broken_by)}), so nobody knows what its "
                "cache holds. Load the model again"
            ) from self._broken_by
        orders = self._dispatch.send()
        events: list[Event] = []
        if orders is not None and orders.release:
            events += self._go_on(to_its_end=True)  # with what is under way: the step that releases is one by itself
        if orders is not None:
            self._told.append(orders)
        if self._current is None and (self._told or self._described.has_work or not self._dispatch.has_work):
            self._current, self._told = Running(self._step_together(self._told)), []
        events += self._go_on(to_its_end=self._channels is None or (orders is not None and orders.release))
        if self._channels is not None:
            rests = self._current is None and not events and not self._described.has_work and self._dispatch.has_work
            events += self._gather(_GATHER_SECONDS if rests else 0.0)
        self._dispatch.follow(events)
        return events

    def follow(self, after_step: Callable[[], None] = nothing) -> None:
        """See `Engine.follow`."""
        self._released = False
        while not self._released:
            if self._ranks.leads_replica:
                self._lead()
            else:
                at_once(self._step_together(()))
            after_step()

    def stream(self, requests: Iterable[Request]) -> Iterator[Event]:
        """See `Engine.stream`."""
        if self._rank != 0:
            self.follow()
            return
        yield from super().stream(requests)

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        return EngineStats(tuple(self._dispatch.stats), self._steps)

    def close(self) -> None:
        """See `Engine.close`."""
        if self._channels is not None:
            self._channels.close()
            self._channels = None

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
    def _compute(self) -> Work:
        """One step of this replica. A LogitsError is raised on every rank of it alike; any other ends the rank."""

    @abstractmethod
    def _describe(self) -> ReplicaStats:
        """This replica in numbers; it has work while any request waits or runs."""

    def _go_on(self, to_its_end: bool) -> list[Event]:
        """With the step of replica 0 that is under way: the events of what is over.

        Unless it is to go `to_its_end`, rank 0 does not wait for the device longer than a moment, and not while other
        replicas report: nobody who reads their tokens waits for replica 0.
        """
        events: list[Event] = []
        until = time.monotonic() + _GATHER_SECONDS
        while self._current is not None and not events:
            if to_its_end or not self._current.waits:
                events += self._resume(self._current)
                continue
            events += self._gather(0.0)
            if time.monotonic() > until:
                break
            time.sleep(_NAP_SECONDS)
        return events

    def _resume(self, step: Running) -> list[Event]:
        """Compute until the device is waited for, or the step is over; then its events."""
        try:
            events = step.go_on()
        except BaseException as error:
            self._broken_by = error
            if isinstance(error, GptOssDistError):  # all ranks of this replica have met it
                self._dispatch.fail(error)
            raise
        if events is None:
            return []
        self._current = None
        self._dispatch.stats[0] = self._described
        return events

    def _gather(self, wait_s: float) -> list[Event]:
        """Of the other replicas. What one of them fails with is raised on every rank."""
        try:
            return self._dispatch.gather(wait_s)
        except GptOssDistError as error:
            self._broken_by = error
            self._dispatch.fail(error)
            if self._current is not None:  # the other ranks of this replica have done it
                self._current.finish()
            self._replica.broadcast_object([Orders(failure=error)])
            raise

    def _lead(self) -> None:
        """One step of a replica that rank 0 does not lead; it waits for orders while there is nothing to do."""
        assert self._channels is not None, "ranks that lead replicas have channels"
        try:
            orders = self._channels.receive(0.0 if self._described.has_work else _ORDERS_SECONDS)
        except RankError as error:  # rank 0 is gone
            self._replica.broadcast_object([Orders(failure=error)])
            raise
        if not orders and not self._described.has_work:
            return
        before = self._described
        try:
            events = at_once(self._step_together([content for _, content in orders]))
        except GptOssDistError as error:
            self._channels.send(0, Report([], before, failure=error))
            raise
        if events or self._released or self._described != before:
            self._channels.send(0, Report(events, self._described, self._released))
        if self._released:
            self._channels.flush()  # what comes next may keep this rank from sending the rest

    def _step_together(self, told: Sequence[Orders]) -> Work:
        """One step of this replica's ranks together, after what its leader was told."""
        events = []
        for orders in self._replica.broadcast_object(told):
            events += self._take_in(orders)
        self._steps += 1
        events += yield from self._compute()
        self._compare(events)
        self._described = self._describe()
        return events

    def _take_in(self, orders: Orders) -> list[Event]:
        """The events of what is cancelled. Raises what another replica failed with."""
        if orders.failure is not None:
            raise orders.failure
        self._released = self._released or orders.release
        for request in orders.requests:
            self._admit(request)
        return [event for name in orders.cancelled if (event := self._drop(name))]

    def _compare(self, events: Sequence[Event]) -> None:
        """What the ranks of the replica generated."""
        if not self._agree_every or self._replica.world_size == 1:
            return
        for event in events:
            self._fingerprint.update(event.tokens)
        if self._steps % self._agree_every == 0:
            self._fingerprint.check(self._replica)


def _named(error: BaseException) -> str:
    """`LogitsError: …`, or `KeyboardInterrupt`."""
    return f"{type(error).__name__}: {error}" if f"{error}" else type(error).__name__
