"""The engine over a paged cache: continuous batching, chunked prefill, prefix reuse, preemption.

Every rank of a replica keeps the same scheduler and makes the same decisions; only what comes from outside is
broadcast. The first rank of a replica chooses the tokens and tells the others. Requests go to the replicas in turn.

    rank 0: submit ─► inbox ─► broadcast ─► scheduler ─► chunks ─► batch ─► runner ─► logits
                                                ▲                                       │ chosen once, told to all
                                                └───────────── tokens ◄─────────────────┘
Shape legend: R rows that choose a token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from gptoss_dist.engine.batch import build_batch
from gptoss_dist.engine.engine import Engine
from gptoss_dist.engine.pages import PagePool
from gptoss_dist.engine.penalties import adjust
from gptoss_dist.engine.request import Event, Request, TokenLogprobs, check_request
from gptoss_dist.engine.runner import PagedRunner
from gptoss_dist.engine.sampler import choose
from gptoss_dist.engine.scheduler import Chunk, Scheduler
from gptoss_dist.engine.size import CacheSize
from gptoss_dist.errors import ConfigError, DoesNotFitError
from gptoss_dist.model.load import Loaded
from gptoss_dist.runtime.agree import TokenFingerprint
from gptoss_dist.runtime.dist import RankGroup
from gptoss_dist.runtime.mesh import Ranks
from gptoss_dist.schema import EngineConf


@dataclass
class _Inbox:
    """What rank 0 queued since the last step."""

    requests: list[Request] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)


class PagedEngine(Engine):
    """See the module."""

    def __init__(
        self, loaded: Loaded, group: RankGroup, ranks: Ranks, conf: EngineConf, size: CacheSize, agree_every: int
    ) -> None:
        """Allocate the cache of `size` pages. Collective only in that every rank needs the same `size`."""
        self._group, self._ranks, self._size = group, ranks, size
        self._context, self._vocab = loaded.checkpoint.shape.max_position, loaded.checkpoint.shape.vocab
        self._runner = PagedRunner(loaded.model, size.full_pages, size.sliding_pages, conf.page_size)
        self._page_size = conf.page_size
        self.scheduler = Scheduler(
            PagePool(size.full_pages, conf.page_size),
            PagePool(size.sliding_pages, conf.page_size),
            window=loaded.checkpoint.shape.sliding_window,
            step_tokens=conf.step_tokens,
            max_running=conf.max_running,
        )
        self._agree_every = agree_every
        self._fingerprint = TokenFingerprint()
        self._inbox = _Inbox()
        self._unfinished: dict[str, int] = {}
        self._generators: dict[str, torch.Generator] = {}
        self._arrived = self._steps = 0

    @property
    def has_work(self) -> bool:
        """Whether any replica has an unfinished request."""
        return bool(self._unfinished)

    @property
    def context(self) -> int:
        """The model's own limit, or that of the cache."""
        return min(self._context, self._size.full_pages * self._page_size)

    def submit(self, request: Request) -> None:
        """Queue a request; see `Engine.submit`."""
        if self._group.rank != 0:
            return
        if self._is_under_way(request.id):
            raise ConfigError(f"request {request.id}: a request of this id is under way. Ids are unique.")
        check_request(request, self._vocab, self._context)
        if not self.scheduler.fits(request):
            raise DoesNotFitError(
                f"request {request.id}: {len(request.prompt)} prompt tokens and up to {request.sampling.max_tokens} "
                f"new ones need more than the {self._size.full_pages} pages of {self._page_size} tokens that the cache "
                "has. Raise engine.cache_tokens, take more ranks, or lower "
                "generation.max_new_tokens."
            )
        self._inbox.requests.append(request)

    def cancel(self, request_id: str) -> None:
        """End a request; see `Engine.cancel`."""
        if self._group.rank == 0 and self._is_under_way(request_id):  # else a later request of this id would be hit
            self._inbox.cancelled.append(request_id)

    def step(self) -> list[Event]:
        """One batch through the model on every replica that has work."""
        self._take_in()
        events = self._shared(self._cancelled + self._run(self.scheduler.schedule()))
        for event in events:
            if event.finish is not None:
                self._unfinished.pop(event.request_id, None)
                self._generators.pop(event.request_id, None)
        self._compare(events)
        return events

    def _is_under_way(self, request_id: str) -> bool:
        return request_id in self._unfinished or any(one.id == request_id for one in self._inbox.requests)

    def _take_in(self) -> None:
        inbox, self._inbox = self._group.broadcast_object(self._inbox), _Inbox()
        for request in inbox.requests:
            self._unfinished[request.id] = self._arrived % self._ranks.dp
            self._arrived += 1
            if self._unfinished[request.id] == self._ranks.dp_rank:
                self.scheduler.add(request)
        self._cancelled: list[Event] = []
        for name in inbox.cancelled:
            if self._unfinished.get(name) == self._ranks.dp_rank:
                event = self.scheduler.cancel(name)
                self._cancelled += [event] if event else []

    def _run(self, chunks: list[Chunk]) -> list[Event]:
        if not chunks:  # another replica has work
            return self.scheduler.advance(chunks, {})
        batch = build_batch(chunks, self._page_size, self._group.device)
        logits_RV = self._runner.run(batch)
        sampling = [chunk for chunk in chunks if chunk.samples]
        if not sampling:
            return self.scheduler.advance(chunks, {})
        chosen, logprobs = self._choose(sampling, logits_RV)
        tokens = {chunk.sequence.request.id: token for chunk, token in zip(sampling, chosen, strict=True)}
        events = self.scheduler.advance(chunks, tokens)
        return [_with_logprobs(event, logprobs) for event in events]

    def _choose(self, chunks: Sequence[Chunk], logits_RV: torch.Tensor) -> tuple[list[int], dict[str, TokenLogprobs]]:
        """One token for each row, the same on every rank of the replica."""
        picks = []
        for chunk, logits_V in zip(chunks, logits_RV, strict=True):
            request = chunk.sequence.request
            output = chunk.sequence.tokens[len(request.prompt) :]
            generator = self._generator(request)
            picks.append(
                choose(adjust(logits_V, request.sampling, request.prompt, output), request.sampling, generator)
            )
        chosen_R = torch.stack(picks)
        if self._ranks.tp > 1:
            dist.broadcast(chosen_R, group_src=0, group=self._ranks.tp_group)
        chosen: list[int] = chosen_R.tolist()
        logprobs = {
            chunk.sequence.request.id: _logprobs(logits_V, token, wanted)
            for chunk, logits_V, token in zip(chunks, logits_RV, chosen, strict=True)
            if (wanted := chunk.sequence.request.sampling.logprobs) is not None
        }
        return chosen, logprobs

    def _generator(self, request: Request) -> torch.Generator:
        if request.id not in self._generators:
            generator = torch.Generator(self._group.device)
            self._generators[request.id] = generator.manual_seed(request.sampling.seed)
        return self._generators[request.id]

    def _shared(self, mine: list[Event]) -> list[Event]:
        """The events of all replicas, in the replicas' order, on every rank."""
        if self._ranks.dp == 1:
            return mine
        own = mine if self._ranks.leads_replica else []
        return [event for events in self._group.all_gather_object(own) for event in events]

    def _compare(self, events: list[Event]) -> None:
        self._steps += 1
        for event in events:
            self._fingerprint.update(event.tokens)
        if self._agree_every and self._steps % self._agree_every == 0 and self._group.world_size > 1:
            self._fingerprint.check(self._group)


def _logprobs(logits_V: torch.Tensor, token: int, count: int) -> TokenLogprobs:
    logprobs_V = logits_V.log_softmax(dim=-1)
    top = logprobs_V.topk(count)
    pairs = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return TokenLogprobs(float(logprobs_V[token]), pairs)


def _with_logprobs(event: Event, logprobs: dict[str, TokenLogprobs]) -> Event:
    if event.request_id not in logprobs or not event.tokens:
        return event
    return Event(event.request_id, event.tokens, event.finish, (logprobs[event.request_id],))
