"""The responses of a server: made, kept, asked for again, cancelled and deleted."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator

from starlette.responses import JSONResponse, Response

from gptoss_dist.server.api_error import ApiError, unsupported
from gptoss_dist.server.responses_background import Background, check_kept, replayed
from gptoss_dist.server.responses_begin import Begun, begin, count_tokens
from gptoss_dist.server.responses_pages import page_of
from gptoss_dist.server.responses_request import ResponseRequest
from gptoss_dist.server.responses_run import Run
from gptoss_dist.server.service import Service
from gptoss_dist.server.sse import EventStream, encode
from gptoss_dist.server.store import Record, ResponseStore, StoredItem

_RETRY_S = 5.0


class Responses:
    """For the HTTP thread's event loop. Whoever knows the id of a response may use it, whatever API key made it."""

    def __init__(self, service: Service, store: ResponseStore) -> None:
        """No response yet but those of `store`."""
        self._service, self._store = service, store
        self._running: dict[str, Background] = {}
        self._beginning = 0
        """Those that will run in the background."""
        self._inputs: dict[str, tuple[StoredItem, ...]] = {}
        """The items of the requests that run in the background."""

    async def create(self, body: ResponseRequest) -> Response:
        """Answer whole, as a stream, or at once with what is to come. Raises ApiError."""
        name = self._service.model.check_name(body.model)
        body.check()
        with self._background_room() if body.background else contextlib.nullcontext():
            begun = await begin(self._service, body, name, self._past(body.previous_response_id), self._store.item)
        if body.background:
            return self._in_background(begun, bool(body.stream))
        if body.is_stored:
            begun.run.on_end = lambda: self._store.put(begun.record())
        if body.stream:
            return EventStream(_encoded(begun.run), begun.run.close)
        try:
            return JSONResponse(await begun.run.finish())
        finally:
            begun.run.close()

    async def count(self, body: ResponseRequest) -> Response:
        """How many tokens the prompt of a request has, more than the context too. Raises ApiError."""
        model = self._service.model
        model.check_name(body.model)
        body.check()
        with self._service.room(1):
            count = await count_tokens(model, body, self._past(body.previous_response_id), self._store.item)
        return JSONResponse({"object": "response.input_tokens", "input_tokens": count})

    def response(self, name: str) -> Response:
        """A response as it is now. Raises ApiError (404)."""
        if name in self._running:
            return JSONResponse(self._running[name].run.response)
        return _stored(self._record(name))

    def stream(self, name: str, number: int) -> Response:
        """The events of a background response from a number on. Raises ApiError (404, 400)."""
        running = self._running.get(name)
        log = running.log if running is not None else self._record(name).log
        if log is None:
            message = (
                "Only responses created with background=true and stream=true can be streamed, while job.store_mb "
                "has room for their events."
            )
            raise ApiError(400, message, param="stream")
        check_kept(log, number)
        return EventStream(replayed(log, number) if running is None else running.follow(number))

    async def cancel(self, name: str) -> Response:
        """End a background response; one that has ended stays as it is. Raises ApiError (404, 400)."""
        if name in self._running:
            running = self._running[name]
            await running.cancel()
            return JSONResponse(running.run.response)
        record = self._record(name)
        if not json.loads(record.response)["background"]:
            raise ApiError(400, "Only responses created with background=true can be cancelled.")
        return _stored(record)

    async def delete(self, name: str) -> Response:
        """End and forget a response; those that continue it stay whole. Raises ApiError (404)."""
        if name in self._running:
            await self._running[name].cancel()
            self._store.delete(name)
        elif not self._store.delete(name):
            raise _not_found(name)
        return JSONResponse({"id": name, "object": "response", "deleted": True})

    def input_items(self, name: str, limit: int, newest_first: bool, after: str | None) -> Response:
        """The items of the request itself, not of the conversation before it, by pages. Raises ApiError (404, 400)."""
        items = self._inputs[name] if name in self._running else self._record(name).input
        return JSONResponse(page_of(items, limit, newest_first, after))

    @contextlib.contextmanager
    def _background_room(self) -> Iterator[None]:
        """Room for one more in the background, while it begins. Raises ApiError (400, 429) where there is none."""
        if not self._store.keeps_any:
            message = "background needs a store, and job.store_responses or job.store_mb is 0 here."
            raise unsupported("background", message)
        if (count := len(self._running) + self._beginning) >= self._store.most:
            message = f"{count} responses run in the background and job.store_responses is no more."
            raise ApiError(429, f"{message} Try later.", code="queue_full", retry_s=_RETRY_S)
        self._beginning += 1
        try:
            yield
        finally:
            self._beginning -= 1

    def _in_background(self, begun: Begun, is_streamed: bool) -> Response:
        def end(running: Background) -> None:
            del self._running[begun.id], self._inputs[begun.id]
            self._store.put(begun.record(running.log))

        log = self._store.new_log() if is_streamed else None
        running = self._running[begun.id] = Background(begun.run, log, end)
        self._inputs[begun.id] = begun.given
        return EventStream(running.follow(0)) if is_streamed else JSONResponse(begun.run.response)

    def _past(self, name: str | None) -> tuple[StoredItem, ...]:
        """The conversation that a request continues. Raises ApiError (400)."""
        if name is None:
            return ()
        if name in self._running:
            raise ApiError(400, f"The response {name!r} has not ended yet.", param="previous_response_id")
        record = self._store.get(name)
        if record is None:
            raise ApiError(  # 400 as with OpenAI: clients send the whole conversation then
                400,
                f"Previous response with id {name!r} not found: it was never stored, is deleted, or made room for "
                "others.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        return record.conversation

    def _record(self, name: str) -> Record:
        record = self._store.get(name)
        if record is None:
            raise _not_found(name)
        return record


def _stored(record: Record) -> Response:
    return Response(record.response, media_type="application/json")


def _not_found(name: str) -> ApiError:
    return ApiError(404, f"Response with id {name!r} not found.", param="id")


async def _encoded(run: Run) -> AsyncIterator[bytes]:
    async for event in run.events():
        yield encode(event, event["type"])
