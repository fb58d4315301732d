"""Records in, steps of the engine, lines out: rank 0's loop. The other ranks are in `Engine.follow`.

Only a window of records is submitted at a time: enough that every replica always has work, few enough that memory does
not depend on how many records there are. The engine deals requests over its replicas, so a slow one holds no other up.
While functions that an answer called run, the engine goes on with the others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from gptoss_dist.batch.answers import Answer
from gptoss_dist.batch.calls import Calls
from gptoss_dist.batch.feed import Feed
from gptoss_dist.batch.lines import answer_line, error_line
from gptoss_dist.batch.part import PartWriter
from gptoss_dist.batch.records import Record, Refusal
from gptoss_dist.batch.summary import Tally
from gptoss_dist.engine.engine import Engine
from gptoss_dist.engine.request import Event
from gptoss_dist.errors import GptOssDistError
from gptoss_dist.server.api_error import ApiError, from_error

IDLE_S = 1.0
"""A step without work, now and then, tells whether the other ranks are alive."""


@dataclass
class _UnderWay:
    """A record whose answer grows."""

    record: Record
    answer: Answer
    begun: float

    def after(self, calls: Calls) -> _UnderWay:
        """Its next requests, once the calls are over. Raises ApiError."""
        self.answer.go_on(calls)
        return self


class Driver:
    """`drain` answers all records that the feed has now."""

    def __init__(
        self,
        engine: Engine,
        begin: Callable[[Record], Answer],
        feed: Feed,
        writer: PartWriter,
        tally: Tally,
        window: int,
    ) -> None:
        """`begin` makes a record's answer, or raises ApiError; `window`: requests that may be under way at once."""
        self._engine, self._begin, self._feed, self._writer, self._tally = engine, begin, feed, writer, tally
        self._window = window
        self._under_way: dict[str, _UnderWay] = {}
        self._calling: list[tuple[_UnderWay, Calls]] = []
        self._called = threading.Event()

    def drain(self, should_stop: Callable[[], bool], grace_s: float, on_step: Callable[[], None]) -> None:
        """Until the feed has nothing for now. After `should_stop()` nothing new is begun, and what is not finished
        `grace_s` later is left for another run. Raises BatchError where the output cannot be written.
        """
        try:
            self._drain(should_stop, grace_s, on_step)
        finally:
            for name in self._under_way:
                self._engine.cancel(name)

    def _drain(self, should_stop: Callable[[], bool], grace_s: float, on_step: Callable[[], None]) -> None:
        deadline: float | None = None
        while True:
            if deadline is None and should_stop():
                deadline = time.monotonic() + grace_s
            self._go_on()
            if deadline is None:
                self._admit(should_stop)
            is_idle = not (self._under_way or self._calling)
            if is_idle or (deadline is not None and time.monotonic() >= deadline):
                break
            if not self._under_way:
                self._wait_for_calls(deadline)
            for event in self._engine.step():
                self._take(event)
            self._writer.check()
            on_step()

    def _wait_for_calls(self, deadline: float | None) -> None:
        """Until one has ended, but no longer than it may take to notice that a rank is gone."""
        left = IDLE_S if deadline is None else min(IDLE_S, max(0.0, deadline - time.monotonic()))
        self._called.wait(left)
        self._called.clear()

    def _go_on(self) -> None:
        """With the answers whose calls are over."""
        over = [one for one in self._calling if one[1].are_over]
        self._calling = [one for one in self._calling if one not in over]
        for one, calls in over:
            self._submit_or_refuse(one.record, partial(one.after, calls))

    def _admit(self, should_stop: Callable[[], bool]) -> None:
        """Fill the window."""
        while len(self._under_way) + len(self._calling) < self._window and not should_stop():
            record = self._feed.next()
            if record is None:
                return
            if record.refusal is not None:
                self._refuse(record, record.refusal)
                continue
            self._submit_or_refuse(record, partial(self._make, record))

    def _make(self, record: Record) -> _UnderWay:
        return _UnderWay(record, self._begin(record), time.monotonic())

    def _submit_or_refuse(self, record: Record, make: Callable[[], _UnderWay]) -> None:
        try:
            self._submit(make())
        except ApiError as error:
            self._refuse(record, error)
        except GptOssDistError as error:
            self._refuse(record, from_error(error))
        except (ValueError, RecursionError) as error:  # depths that a renderer or a schema's reader gives up at
            self._refuse(record, ApiError(400, f"the request cannot be read: {error}.", code="invalid_value"))

    def _submit(self, one: _UnderWay) -> None:
        """All requests of a record, or none. Raises GptOssDistError."""
        for count, request in enumerate(one.answer.requests):
            try:
                self._engine.submit(request)
            except GptOssDistError:
                for queued in one.answer.requests[:count]:
                    self._engine.cancel(queued.id)
                    del self._under_way[queued.id]
                raise
            self._under_way[request.id] = one

    def _take(self, event: Event) -> None:
        one = self._under_way.get(event.request_id)
        if one is None:
            return
        if one.answer.take(event):
            del self._under_way[event.request_id]
            if event.finish is None:
                self._engine.cancel(event.request_id)
        self._tally.tokens(len(event.tokens))
        if one.answer.is_whole:
            self._finish(one)

    def _finish(self, one: _UnderWay) -> None:
        try:
            if (calls := one.answer.call(self._called)) is not None:
                self._calling.append((one, calls))
                return
            line = answer_line(one.record, one.answer.body())
        except ApiError as error:
            self._refuse(one.record, error)
            return
        self._write(one.record, line, time.monotonic() - one.begun)

    def _refuse(self, record: Record, error: ApiError | Refusal) -> None:
        self._write(record, error_line(record, error), None)

    def _write(self, record: Record, line: dict[str, Any], seconds: float | None) -> None:
        self._writer.write(line)
        self._tally.line(line, seconds)
        self._feed.answered(record)
