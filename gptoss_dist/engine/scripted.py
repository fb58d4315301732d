"""An engine without a model: it says what a script tells it to, through the real scheduler and its pages.

For testing what stands around an engine (servers, clients) exactly, without weights and without torch. One process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from gptoss_dist.engine.engine import Engine
from gptoss_dist.engine.page_needs import sliding_pages
from gptoss_dist.engine.pages import PagePool
from gptoss_dist.engine.request import Event, Finish, Request, TokenLogprobs, check_request
from gptoss_dist.engine.scheduler import Scheduler
from gptoss_dist.engine.stats import EngineStats, ReplicaStats
from gptoss_dist.engine.step_plan import Chunk
from gptoss_dist.errors import ConfigError
from gptoss_dist.schema.engine import EngineConf

_TOKENS = 32768
"""Tokens of cache where none are asked for."""
_LOGPROB = -0.25


@dataclass(frozen=True)
class Script:
    """What is said to one prompt."""

    tokens: tuple[int, ...]
    delay_s: float = 0.0
    """Before each token."""
    finish: Finish = Finish.stop
    """Why it ends after the last of its tokens."""


@dataclass(frozen=True)
class ScriptedShape:
    """The model that is played: its limits alone."""

    context: int = 131072
    vocabulary: int = 201088
    window: int = 128


@dataclass
class _Playing:
    """A request under way and its script."""

    request: Request
    script: Script
    said: int = 0
    tokens: list[int] = field(default_factory=list)


class ScriptedEngine(Engine):
    """Plays `choose(prompt)`; a step takes as long as the longest delay of the requests that get a token in it."""

    def __init__(
        self, choose: Callable[[tuple[int, ...]], Script], conf: EngineConf, shape: ScriptedShape | None = None
    ) -> None:
        """`choose` gives the script for the tokens of a prompt."""
        self._choose, self._shape = choose, shape or ScriptedShape()
        tokens = conf.cache_tokens or _TOKENS
        pages = -(-tokens // conf.page_size)
        windows = sliding_pages(self._shape.window, conf.page_size, conf.tokens_a_step, conf.max_running, pages)
        self.scheduler = Scheduler(
            PagePool(pages, conf.page_size),
            PagePool(min(windows, pages), conf.page_size),
            window=self._shape.window,
            step_tokens=conf.tokens_a_step,
            max_running=conf.max_running,
            mixed_step_tokens=conf.mixed_step_tokens,
        )
        self._context = min(self._shape.context, pages * conf.page_size)
        self._playing: dict[str, _Playing] = {}
        self._inbox: dict[str, Request] = {}
        self._cancelled: list[str] = []
        self._steps = 0

    @property
    def has_work(self) -> bool:
        """Whether a request is not finished."""
        return bool(self._playing or self._inbox)

    @property
    def context(self) -> int:
        """The shape's, or what the cache holds."""
        return self._context

    def at_once(self, request: Request) -> int:
        """See `Engine.at_once`."""
        return self.scheduler.room.at_once(request)

    def submit(self, request: Request) -> None:
        """Queue a request; see `Engine.submit`."""
        if request.id in self._playing or request.id in self._inbox:
            raise ConfigError(f"request {request.id}: a request of this id is under way. Ids are unique.")
        check_request(request, self._shape.vocabulary, self._context)
        self._inbox[request.id] = request

    def cancel(self, request_id: str) -> None:
        """End a request; see `Engine.cancel`."""
        if request_id in self._playing or request_id in self._inbox:  # else a later request of this id would be hit
            self._cancelled.append(request_id)

    def step(self) -> list[Event]:
        """One token of every running script that has its prompt in the cache."""
        for request in self._inbox.values():
            self._playing[request.id] = _Playing(request, self._choose(request.prompt))
            self.scheduler.add(request)
        self._inbox = {}
        events = [event for name in self._cancelled if (event := self.scheduler.cancel(name))]
        self._cancelled = []
        chunks = self.scheduler.schedule()
        self._steps += 1
        events += self._advance(chunks)
        for event in events:
            if event.finish is not None:
                self._playing.pop(event.request_id, None)
        return events

    def stats(self) -> EngineStats:
        """Of the one scheduler."""
        return EngineStats((ReplicaStats.of(self.scheduler),), self._steps)

    def _advance(self, chunks: list[Chunk]) -> list[Event]:
        playing = [self._playing[chunk.sequence.id] for chunk in chunks if chunk.samples]
        time.sleep(max((one.script.delay_s for one in playing), default=0.0))
        self.scheduler.launched(chunks)
        if not chunks:
            return []
        events = []
        for event in self.scheduler.resolve([one.script.tokens[one.said] for one in playing]):
            one = self._playing[event.request_id]
            one.said += 1
            events.append(self._ended(one, event))
        return events

    def _ended(self, one: _Playing, event: Event) -> Event:
        """The event with its log probabilities, and the script's own end if this is its last token."""
        finish = event.finish
        if finish is None and one.said == len(one.script.tokens):
            self.scheduler.cancel(event.request_id)
            finish = one.script.finish
        wanted = one.request.sampling.logprobs
        logprobs = () if wanted is None else tuple(self._logprobs(token, wanted) for token in event.tokens)
        return replace(event, finish=finish, logprobs=logprobs)

    def _logprobs(self, token: int, count: int) -> TokenLogprobs:
        """Made up: the token said is the likeliest, those with the next ids follow."""
        others = ((token + place) % self._shape.vocabulary for place in range(count))
        return TokenLogprobs(_LOGPROB, tuple((other, _LOGPROB - 2.0 * place) for place, other in enumerate(others)))
