"""The engine over a paged cache: continuous batching, chunked prefill, prefix reuse, preemption.

Every rank of a replica keeps the same scheduler and makes the same decisions; only what comes from outside is
broadcast. Tokens are chosen on the device and fed back there, and the host is a step behind:

    host      │ take in, plan n+1, launch n+1 │ read the tokens of n, its events │ take in, plan n+2, launch n+2 │ …
    device    │ ……… n ………………………………………│ n+1 ………………………………………………………………………………│ n+2 …

so the device always has the next step before it ends the last. A running request with a constraint, which is told every
token before it says what may follow, makes the host read step n before it plans step n+1: the device waits for the host
there. Nothing else changes, and with `lag=0`, where every step is read before the next is planned, all requests get the
same tokens.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch

from gptoss_dist.engine.batch import Batch, BatchBuilder
from gptoss_dist.engine.choice import Chooser, Chosen
from gptoss_dist.engine.logits import Logits
from gptoss_dist.engine.pages import PagePool
from gptoss_dist.engine.replicas import ReplicatedEngine
from gptoss_dist.engine.request import Event, Request, Row, TokenLogprobs
from gptoss_dist.engine.runner import PagedRunner
from gptoss_dist.engine.scheduler import Scheduler
from gptoss_dist.engine.size import CacheSize
from gptoss_dist.engine.stats import ReplicaStats
from gptoss_dist.engine.step_plan import Chunk
from gptoss_dist.engine.work import Work
from gptoss_dist.model.load import Loaded
from gptoss_dist.runtime.dist import RankGroup
from gptoss_dist.runtime.mesh import Ranks
from gptoss_dist.schema.engine import EngineConf


class Runner(Protocol):
    """A model with its cache."""

    def run(self, batch: Batch) -> torch.Tensor | Logits:
        """Logits of the rows that choose a token, whole as a tensor; fills the pages of all tokens of the batch."""

    def close(self) -> None:
        """No batch comes any more."""


class _Flight(NamedTuple):
    """A step that was launched and not read."""

    requests: list[Request]
    """Whose tokens it chooses, in order."""
    chosen: Chosen | None
    """None if it chooses none."""
    step: int

    def has_landed(self) -> bool:
        """Whether the device has done it."""
        return self.chosen is None or self.chosen.is_here()


class PagedEngine(ReplicatedEngine):
    """Requests of this replica over one paged cache: scheduler, batch, runner and choice, a step ahead of the host."""

    def __init__(
        self,
        loaded: Loaded,
        group: RankGroup,
        ranks: Ranks,
        conf: EngineConf,
        size: CacheSize,
        agree_every: int,
        *,
        lag: int = 1,
        runner: Runner | None = None,
    ) -> None:
        """Allocate the cache of `size` pages. Collective; every rank needs the same `size`.

        `lag`: steps that may be under way when the next is planned, 0 or 1. `runner`: in place of the loaded model.
        """
        super().__init__(loaded, group, ranks, agree_every, conf.page_size)
        assert lag in (0, 1), "the host is at most one step behind"
        self._size, self._page_size, self._lag = size, conf.page_size, lag
        self._runner: Runner = runner or PagedRunner(loaded, group, ranks, conf, size)
        self.scheduler = Scheduler(
            PagePool(size.full_pages, conf.page_size),
            PagePool(size.sliding_pages, conf.page_size),
            window=self._shape.sliding_window,
            step_tokens=conf.tokens_a_step,
            max_running=conf.max_running,
            mixed_step_tokens=conf.mixed_step_tokens,
        )
        most = -(-self.context // conf.page_size)
        self._builder = BatchBuilder(conf.page_size, conf.max_running, most, group.device)
        self._chooser = Chooser(ranks, group.device)
        self._flights: deque[_Flight] = deque()

    @property
    def context(self) -> int:
        """The model's own limit, or that of the cache."""
        return min(self._shape.max_position, self._size.full_pages * self._page_size)

    def at_once(self, request: Request) -> int:
        """See `Engine.at_once`."""
        return self.scheduler.room.at_once(request)

    def close(self) -> None:
        """See `Engine.close`."""
        super().close()
        self._runner.close()

    def _check_fits(self, request: Request) -> None:
        self.scheduler.room.check(request)

    def _admit(self, request: Request) -> None:
        self.scheduler.add(request)

    def _drop(self, request_id: str) -> Event | None:
        self._chooser.forget(request_id)
        return self.scheduler.cancel(request_id)

    def _compute(self) -> Work:
        """Launch the next step, then read the one before; where there is none to launch, whatever is under way."""
        events: list[Event] = []
        if self._flights and self.scheduler.awaits_constraint:
            yield self._flights[0].has_landed
            events += self._read()
        chunks = self.scheduler.schedule()
        if chunks:
            self._flights.append(self._launch(chunks))
        self.scheduler.launched(chunks)
        while len(self._flights) > (self._lag if chunks else 0):
            yield self._flights[0].has_landed
            events += self._read()
        if not self.scheduler.has_work:
            self._flights.clear()
            self.scheduler.abandon()
        return events

    @torch.no_grad()
    def _launch(self, chunks: list[Chunk]) -> _Flight:
        batch = self._builder.build(chunks)
        result = self._runner.run(batch)
        sampling = [chunk.sequence for chunk in chunks if chunk.samples]
        chosen = None
        if sampling:
            logits = result if isinstance(result, Logits) else Logits(result)
            rows = [Row(sequence.request, sequence.tokens) for sequence in sampling]
            chosen = self._chooser.choose(rows, logits, batch.draw)
            self._builder.feed(batch, chosen.tokens_R)
        return _Flight([sequence.request for sequence in sampling], chosen, self._steps)

    def _read(self) -> list[Event]:
        """The events of the oldest step under way, once the device has done it."""
        flight = self._flights.popleft()
        tokens: list[int | None] = []
        logprobs: dict[str, TokenLogprobs] = {}
        if flight.chosen is not None:
            tokens, logprobs = flight.chosen.wait(f"step {flight.step}")
        events = self.scheduler.resolve(tokens)
        requests = {request.id: request for request in flight.requests}
        for event in events:
            if event.finish is not None:
                self._chooser.forget(event.request_id)
            else:
                self._chooser.accept(requests[event.request_id], event.tokens[-1])
        return [_with_logprobs(event, logprobs) for event in events]

    def _describe(self) -> ReplicaStats:
        return ReplicaStats.of(self.scheduler)


def _with_logprobs(event: Event, logprobs: dict[str, TokenLogprobs]) -> Event:
    if event.request_id not in logprobs or not event.tokens:
        return event
    return replace(event, logprobs=(logprobs[event.request_id],))
