"""The engine over the model's own forward: slow and obvious, and what the fast engine is compared with.

Each running request has a cache of its own and goes through the model alone, one token a step. So many run at once as
are allowed, and as have room for all the tokens that they may come to; the others wait without a cache. The ranks of a
replica compute the same logits; its first rank chooses the token and the others are told.

Shape legend: V vocabulary.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from gptoss_dist.engine.choice import Chooser
from gptoss_dist.engine.logits import Logits
from gptoss_dist.engine.replicas import ReplicatedEngine
from gptoss_dist.engine.request import Event, Finish, Request, Row
from gptoss_dist.engine.sampler import Draw, in_torch
from gptoss_dist.engine.stats import ReplicaStats
from gptoss_dist.engine.work import Work
from gptoss_dist.errors import DoesNotFitError
from gptoss_dist.model.load import Loaded
from gptoss_dist.runtime.dist import RankGroup
from gptoss_dist.runtime.mesh import Ranks

_PREFILL = 2048
"""Prompt tokens that go through the model at once."""
_SCORE_BYTES = 1 << 29
"""Fewer do where eager attention, which holds the scores of all their pairs with the whole prompt in some four copies,
would need more than this for each copy: 2,048 of 2,048 tokens with 64 heads in bfloat16, 32 of 131,072."""


@dataclass
class _Sequence:
    """A request under way on this replica."""

    request: Request
    cache: Any
    tokens: list[int]
    """Prompt and output."""

    @property
    def count(self) -> int:
        """Tokens of the output."""
        return len(self.tokens) - len(self.request.prompt)


class TransformersEngine(ReplicatedEngine):
    """Requests of this replica, each with a cache of its own, through the model's own forward."""

    def __init__(
        self,
        loaded: Loaded,
        group: RankGroup,
        ranks: Ranks,
        agree_every: int = 32,
        max_running: int = 64,
        room: int | None = None,
    ) -> None:
        """Take a loaded model; nothing is allocated before a request comes.

        `max_running` requests have a cache at once, in `room` bytes of each rank, which all ranks take to be the same;
        None: however much they take.
        """
        super().__init__(loaded, group, ranks, agree_every)
        self._model: Any = loaded.model
        self._memory, self._is_eager = loaded.planned, loaded.kernels.attention == "eager"
        self._pair_bytes: int = self._shape.heads * self._model.lm_head.weight.element_size()
        self._device = self._model.lm_head.weight.device if loaded.plan.device_map else group.device
        self._chooser = Chooser(ranks, self._device, in_torch())
        self._max_running, self._room = max_running, room
        self._waiting: deque[Request] = deque()
        self._running: dict[str, _Sequence] = {}
        self._generated = 0

    @property
    def context(self) -> int:
        """The model's own limit, or what there is room for."""
        longest = self._shape.max_position
        return longest if self._room is None else min(longest, self._memory.tokens(self._room))

    def at_once(self, request: Request) -> int:
        """See `Engine.at_once`."""
        return (
            self._max_running
            if self._room is None
            else min(self._max_running, self._room // self._cache_bytes(request))
        )

    def _cache_bytes(self, request: Request) -> int:
        """Of all the tokens that the request may come to, on this rank."""
        return self._memory.cache(len(request.prompt) + request.sampling.max_tokens)

    def _check_fits(self, request: Request) -> None:
        if self._room is not None and (needed := self._cache_bytes(request)) > self._room:
            raise DoesNotFitError(
                f"request {request.id}: {len(request.prompt)} prompt tokens and up to {request.sampling.max_tokens} "
                f"new ones take {needed / 1e9:.1f} GB of cache on a rank, which has room for {self._room / 1e9:.1f} GB "
                "(engine.memory_fraction of what the weights left). Take more ranks, or lower "
                "generation.max_new_tokens."
            )

    def _can_begin(self) -> bool:
        """Whether the first that waits has a place, and room beside those that run."""
        if not self._waiting or len(self._running) >= self._max_running:
            return False
        beside = sum(self._cache_bytes(one.request) for one in self._running.values())
        return self._room is None or beside + self._cache_bytes(self._waiting[0]) <= self._room

    def _admit(self, request: Request) -> None:
        self._waiting.append(request)

    def _drop(self, request_id: str) -> Event | None:
        waiting = next((one for one in self._waiting if one.id == request_id), None)
        if waiting is not None:
            self._waiting.remove(waiting)
        elif self._running.pop(request_id, None) is None:
            return None
        self._chooser.forget(request_id)
        return Event(request_id, (), Finish.cancelled)

    def _compute(self) -> Work:
        """Prefill one waiting request if there is one that may run, else decode one token of every running one."""
        yield from ()  # it waits for the device wherever it needs a number
        return self._compute_all()

    @torch.no_grad()
    def _compute_all(self) -> list[Event]:
        work = [self._begin(self._waiting.popleft())] if self._can_begin() else list(self._running.values())
        events = [self._advance(sequence) for sequence in work]
        for event in events:
            self._generated += len(event.tokens)
            if event.finish is not None:
                del self._running[event.request_id]
                self._chooser.forget(event.request_id)
        return events

    def _describe(self) -> ReplicaStats:
        return ReplicaStats(len(self._waiting), len(self._running), generated=self._generated)

    def _begin(self, request: Request) -> _Sequence:
        sequence = _Sequence(request, DynamicCache(config=self._model.config), list(request.prompt))
        self._running[request.id] = sequence
        return sequence

    def _advance(self, sequence: _Sequence) -> Event:
        """One more token of a request: after its whole prompt, or after its last token."""
        request, sampling = sequence.request, sequence.request.sampling
        place = len(sequence.tokens)
        logits_V = self._forward(sequence, sequence.tokens[-1:] if sequence.count else sequence.tokens)
        draw = Draw(
            torch.tensor([sampling.temperature], dtype=torch.float32, device=self._device),
            torch.tensor([sampling.seed], device=self._device),
            torch.tensor([place], device=self._device),
        )
        rows = [Row(request, sequence.tokens)]
        [token], logprobs = self._chooser.choose(rows, Logits(logits_V.unsqueeze(0)), draw).wait(f"step {self._steps}")
        if token is None:
            return Event(request.id, (), Finish.blocked)
        sequence.tokens.append(token)
        self._chooser.accept(request, token)
        finish = None
        if token in sampling.stop_tokens:
            finish = Finish.stop
        elif sequence.count >= sampling.max_tokens:
            finish = Finish.length
        return Event(request.id, (token,), finish, tuple(logprobs.values()))

    def _tokens_at_once(self, length: int) -> int:
        """Of a prompt of `length` tokens; the same on all ranks."""
        if not self._is_eager:
            return _PREFILL
        return max(1, min(_PREFILL, _SCORE_BYTES // (self._pair_bytes * length)))

    def _forward(self, sequence: _Sequence, tokens: list[int] | tuple[int, ...]) -> torch.Tensor:
        logits, count = None, self._tokens_at_once(len(sequence.tokens))
        for start in range(0, len(tokens), count):
            ids = torch.tensor([tokens[start : start + count]], device=self._device)
            output = self._model(input_ids=ids, past_key_values=sequence.cache, use_cache=True, logits_to_keep=1)
            logits = output.logits
        assert logits is not None, "a request has at least one token"
        last_V: torch.Tensor = logits[0, -1]
        return last_V
