"""The engine over the model's own forward: slow and obvious, and what the fast engine is compared with.

Each running request has a cache of its own and goes through the model alone, one token a step. The ranks of a replica
compute the same logits; its first rank chooses the token and the others are told. Requests go to the replicas in turn.
Shape legend: V vocabulary.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from transformers import DynamicCache

from gptoss_dist.engine.engine import Engine
from gptoss_dist.engine.request import Event, Finish, Request, check_request
from gptoss_dist.engine.sampler import choose
from gptoss_dist.errors import ConfigError, DoesNotFitError
from gptoss_dist.model.load import Loaded
from gptoss_dist.runtime.agree import TokenFingerprint
from gptoss_dist.runtime.dist import RankGroup
from gptoss_dist.runtime.mesh import Ranks

_PREFILL = 2048
"""Prompt tokens that go through the model at once: bounds the memory of eager attention."""


@dataclass
class _Sequence:
    """A request under way on its replica."""

    request: Request
    replica: int
    cache: Any
    generator: torch.Generator
    last: int | None = None
    count: int = 0


@dataclass
class _Inbox:
    """What rank 0 queued since the last step."""

    requests: list[Request] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)


class TransformersEngine(Engine):
    """See the module; `agree_every` steps lie between two comparisons of what the ranks generated (0: never)."""

    def __init__(self, loaded: Loaded, group: RankGroup, ranks: Ranks, agree_every: int = 32) -> None:
        """Take a loaded model; nothing is allocated before a request comes."""
        self._model: Any = loaded.model
        self._memory = loaded.planned
        self._context, self._vocab = loaded.checkpoint.shape.max_position, loaded.checkpoint.shape.vocab
        self._group, self._ranks = group, ranks
        self._device = self._model.lm_head.weight.device if loaded.plan.device_map else group.device
        self._agree_every = agree_every
        self._fingerprint = TokenFingerprint()
        self._inbox = _Inbox()
        self._waiting: deque[Request] = deque()
        self._running: dict[str, _Sequence] = {}
        self._steps = 0
        self._admitted = 0

    @property
    def has_work(self) -> bool:
        """Whether requests wait or run."""
        return bool(self._waiting or self._running)

    @property
    def context(self) -> int:
        """The model's own limit."""
        return self._context

    def submit(self, request: Request) -> None:
        """Queue a request; see `Engine.submit`."""
        if self._group.rank != 0:
            return
        if self._is_under_way(request.id):
            raise ConfigError(f"request {request.id}: a request of this id is under way. Ids are unique.")
        check_request(request, self._vocab, self._context)
        self._check_fits(request)
        self._inbox.requests.append(request)

    def cancel(self, request_id: str) -> None:
        """End a request; see `Engine.cancel`."""
        if self._group.rank == 0 and self._is_under_way(request_id):  # else a later request of this id would be hit
            self._inbox.cancelled.append(request_id)

    @torch.no_grad()
    def step(self) -> list[Event]:
        """Prefill one waiting request if there is one, else decode one token of every running one."""
        inbox, self._inbox = self._group.broadcast_object(self._inbox), _Inbox()
        self._waiting.extend(inbox.requests)
        events = [event for name in inbox.cancelled if (event := self._drop(name))]
        work = [self._admit(self._waiting.popleft())] if self._waiting else list(self._running.values())
        mine = [self._advance(sequence) for sequence in work if sequence.replica == self._ranks.dp_rank]
        events += self._shared(mine)
        for event in events:
            if event.finish is not None:
                self._running.pop(event.request_id, None)
        self._compare(events)
        return events

    def _is_under_way(self, request_id: str) -> bool:
        queued = (*self._waiting, *self._inbox.requests)
        return request_id in self._running or any(one.id == request_id for one in queued)

    def _check_fits(self, request: Request) -> None:
        tokens = len(request.prompt) + request.sampling.max_tokens
        if self._device.type == "cuda":
            needed, free = self._memory.cache(tokens), torch.cuda.mem_get_info(self._device)[0]
            if needed > free:
                raise DoesNotFitError(
                    f"request {request.id}: the cache of {tokens} tokens takes {needed / 1e9:.1f} GB on a rank, and "
                    f"{free / 1e9:.1f} GB are free. Take more ranks, or fewer tokens."
                )

    def _admit(self, request: Request) -> _Sequence:
        generator = torch.Generator(self._device).manual_seed(request.sampling.seed)
        replica = self._admitted % self._ranks.dp
        self._admitted += 1
        cache = DynamicCache(config=self._model.config)
        sequence = _Sequence(request, replica, cache, generator)
        self._running[request.id] = sequence
        return sequence

    def _advance(self, sequence: _Sequence) -> Event:
        """One more token of a request: after its whole prompt, or after its last token."""
        tokens = sequence.request.prompt if sequence.last is None else (sequence.last,)
        logits_V = self._forward(sequence, tokens)
        chosen = choose(logits_V, sequence.request.sampling, sequence.generator)
        if self._ranks.tp > 1:
            dist.broadcast(chosen, group_src=0, group=self._ranks.tp_group)
        token = int(chosen)
        sequence.last, sequence.count = token, sequence.count + 1
        sampling = sequence.request.sampling
        finish = None
        if token in sampling.stop_tokens:
            finish = Finish.stop
        elif sequence.count >= sampling.max_tokens:
            finish = Finish.length
        return Event(sequence.request.id, (token,), finish)

    def _forward(self, sequence: _Sequence, tokens: tuple[int, ...]) -> torch.Tensor:
        logits = None
        for start in range(0, len(tokens), _PREFILL):
            ids = torch.tensor([tokens[start : start + _PREFILL]], device=self._device)
            output = self._model(input_ids=ids, past_key_values=sequence.cache, use_cache=True, logits_to_keep=1)
            logits = output.logits
        assert logits is not None, "a request has at least one token"
        last_V: torch.Tensor = logits[0, -1]
        return last_V

    def _drop(self, request_id: str) -> Event | None:
        """Cancel a request, wherever it is."""
        waiting = next((one for one in self._waiting if one.id == request_id), None)
        if waiting is not None:
            self._waiting.remove(waiting)
        elif self._running.pop(request_id, None) is None:
            return None
        return Event(request_id, (), Finish.cancelled)

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
