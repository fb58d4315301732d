"""Between HTTP and the engine: who may begin, whose event this is, and how all of it ends.

Everything here runs on the HTTP thread's event loop, except what says otherwise. The engine's thread and the threads
that watch over the ranks only call `stepped`, `drain` and `fail`, which hand over to that loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from enum import Enum

from gptoss_dist.engine.request import Event, Request
from gptoss_dist.engine.stats import EngineStats
from gptoss_dist.errors import GptOssDistError
from gptoss_dist.server.api_error import ApiError, from_error
from gptoss_dist.server.gauges import gauges_of
from gptoss_dist.server.mailbox import Cancellation, Mailbox, Submission
from gptoss_dist.server.metrics import Metrics
from gptoss_dist.server.request_stream import RequestStream
from gptoss_dist.server.served_model import ServedModel
from gptoss_dist.server.waiting_room import Room, WaitingRoom

_STUCK_S = 60.0
"""A step that takes longer than this makes the server not ready."""
_RETRY_S = 5.0


class State(Enum):
    """What the server can do now."""

    loading = "loading"
    ready = "ready"
    draining = "draining"
    failed = "failed"


class Service:
    """The one owner of the requests under way."""

    def __init__(self, max_waiting: int, max_behind: int) -> None:
        """A server that is loading."""
        self.mailbox = Mailbox()
        self.metrics = Metrics()
        self.is_over = threading.Event()
        """Set once a drain has come to its end; for the engine's thread."""
        self._max_behind = max_behind
        self._state = State.loading
        self._why = "the model is being loaded."
        self._model: ServedModel | None = None
        self._streams: dict[str, RequestStream] = {}
        self._waiting = WaitingRoom(max_waiting)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stepped_at = time.monotonic()
        self.stats: EngineStats | None = None
        """After the last step; None before the first."""
        self.ranks: dict[int, bool] = {0: True}
        """Whether each rank is alive, as far as is known."""
        self.about: dict[str, str] = {}
        """What /stats says of the plan and the kernels; empty while the model is being loaded."""
        self.metrics.show_gauges(lambda: gauges_of(self))

    # ── for other threads ────────────────────────────────────────────────────────────────────────────────────────────

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say which event loop is the HTTP thread's, before anything else is called."""
        self._loop = loop

    def open(self, model: ServedModel) -> None:
        """The model is loaded and its engine steps."""
        self._model = model
        self._stepped_at = time.monotonic()
        if self._state is State.loading:
            self._state, self._why = State.ready, ""

    def stepped(self, events: Sequence[Event], stats: EngineStats) -> None:
        """Take the events of a step, from the engine's thread, and how the engine is doing after it."""
        self._stepped_at = time.monotonic()
        self.stats = stats
        if events:
            self._call(self._deliver, events)

    def drain(self, seconds: float) -> None:
        """Take nothing new; end what is under way after `seconds`; from any thread. Then `is_over` is set."""
        if self._state in (State.loading, State.ready):
            self._state, self._why = State.draining, "the server is shutting down."
        self._call(self._drain, seconds)

    def fail(self, why: str) -> None:
        """End everything at once with an error; from any thread."""
        self._state, self._why = State.failed, why
        self._call(self._end_all, ApiError(500, why, code="engine_failed"))

    # ── for the routes ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def state(self) -> State:
        """What the server can do now."""
        return self._state

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken and the engine steps."""
        return self._state is State.ready and time.monotonic() - self._stepped_at < _STUCK_S

    @property
    def model(self) -> ServedModel:
        """What is served. Raises ApiError (503) while it is being loaded."""
        if self._model is None:
            raise ApiError(503, self._why, code="not_ready", retry_s=_RETRY_S)
        return self._model

    @property
    def waiting(self) -> int:
        """Requests without a first token, those that are being prepared too."""
        return len(self._waiting)

    @property
    def open_requests(self) -> int:
        """Requests that are not finished."""
        return self._waiting.preparing + len(self._streams)

    def check_open(self) -> None:
        """Raise ApiError (503) if nothing is taken now."""
        if self._state is not State.ready:
            raise ApiError(503, self._why, code="not_ready", retry_s=_RETRY_S)

    def room(self, count: int) -> AbstractContextManager[Room]:
        """Room in the queue while so many requests are prepared.

        Raises ApiError: 503 if nothing is taken now, 429 if too many wait, 400 if so many can never wait.
        """
        self.check_open()
        return self._waiting.hold(count)

    async def start(self, requests: Sequence[Request], room: Room) -> RequestStream:
        """Queue requests, all or none, in the room for them; returns once the engine has them. Raises ApiError."""
        self.check_open()
        ids = [one.id for one in requests]
        self._waiting.enter(room, ids)
        stream = RequestStream(ids, self._forget, self._max_behind)
        now = time.monotonic()
        for request in requests:
            self._streams[request.id] = stream
            self.metrics.submitted(request.id, len(request.prompt), now)
        self.mailbox.put(Submission(tuple(requests), lambda error: self._call(self._answer, stream, error)))
        try:
            await stream.accepted
        except BaseException:
            stream.close()
            raise
        return stream

    # ── on the event loop ────────────────────────────────────────────────────────────────────────────────────────────

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None, "attach comes first"
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _answer(self, stream: RequestStream, error: GptOssDistError | None) -> None:
        if error is not None:
            stream.fail(from_error(error))
        elif not stream.accepted.done():
            stream.accepted.set_result(None)

    def _deliver(self, events: Sequence[Event]) -> None:
        now = time.monotonic()
        for event in events:
            stream = self._streams.get(event.request_id)
            if stream is None:
                continue
            if event.tokens:
                self._waiting.leave(event.request_id)
                self.metrics.generated(event.request_id, len(event.tokens), now)
            if event.finish is not None:
                self._drop(event.request_id, event.finish.value)
            stream.put(event)

    def _forget(self, request_id: str) -> None:
        """Nobody waits for this request any more: its pages are free after the next step."""
        if request_id in self._streams:
            self._drop(request_id, "cancelled")
            self.mailbox.put(Cancellation(request_id))

    def _drop(self, request_id: str, reason: str) -> None:
        del self._streams[request_id]
        self._waiting.leave(request_id)
        self.metrics.finished(request_id, reason, time.monotonic())
        self._look_whether_over()

    def _drain(self, seconds: float) -> None:
        assert self._loop is not None
        error = ApiError(503, f"the server shut down {seconds:g} s after it was told to.", code="shutting_down")
        self._loop.call_later(seconds, self._end_all, error)
        self._look_whether_over()

    def _look_whether_over(self) -> None:
        if self._state is State.draining and not self._streams:
            self.is_over.set()
            self.mailbox.wake()

    def _end_all(self, error: ApiError) -> None:
        for stream in list(self._streams.values()):
            stream.fail(error)
        self._look_whether_over()
