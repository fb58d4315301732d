"""The responses of a server: made, kept, asked for again, cancelled and deleted."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response

from gptoss_dist.engine.request import Request
from gptoss_dist.server.answer import harmony_stop_tokens
from gptoss_dist.server.api_error import ApiError, unsupported
from gptoss_dist.server.responses_background import Background
from gptoss_dist.server.responses_object import new_response
from gptoss_dist.server.responses_output import OutputWriter
from gptoss_dist.server.responses_prompt import Prompt, prompt_of
from gptoss_dist.server.responses_reader import TurnReader
from gptoss_dist.server.responses_request import ResponseRequest
from gptoss_dist.server.responses_run import Run
from gptoss_dist.server.sampling import requests_of
from gptoss_dist.server.served_model import ServedModel
from gptoss_dist.server.service import Service
from gptoss_dist.server.sse import EventStream, encode
from gptoss_dist.server.store import Record, ResponseStore
from gptoss_dist.server.store import encode as to_json

_RETRY_S = 5.0


class Responses:
    """For the HTTP thread's event loop. Whoever knows the id of a response may use it, whatever API key made it."""

    def __init__(self, service: Service, store: ResponseStore) -> None:
        """No response yet but those of `store`."""
        self._service, self._store = service, store
        self._running: dict[str, Background] = {}
        self._inputs: dict[str, tuple[bytes, ...]] = {}
        """The items of the requests that run in the background."""

    async def create(self, body: ResponseRequest) -> Response:
        """Answer whole, as a stream, or at once with what is to come. Raises ApiError."""
        model = self._service.model
        name = model.check_name(body.model)
        body.check()
        self._check_background(body)
        self._service.check_open()
        past = self._past(body.previous_response_id)
        prompt, response, request = await asyncio.to_thread(self._prepare, body, model, name, past)
        stream = await self._service.start([request])
        reader = TurnReader(
            request.id,
            stop=model.generation.stop if body.stops is None else body.stops,
            functions=prompt.offer.names,
            one_call=body.parallel_tool_calls is False,
        )
        run = Run(response, request, reader, OutputWriter(body.wanted_logprobs is not None), stream)
        given = tuple(map(to_json, prompt.items))
        return (
            self._in_background(body, run, past, given) if body.background else await self._now(body, run, past, given)
        )

    def response(self, name: str) -> Response:
        """A response as it is now. Raises ApiError (404)."""
        if name in self._running:
            return JSONResponse(self._running[name].run.response)
        return Response(self._record(name).response, media_type="application/json")

    def stream(self, name: str, after: int) -> Response:
        """The events of a background response after number `after`. Raises ApiError (404, 400)."""
        if name in self._running:
            running = self._running[name]
            if running.log is not None:
                return EventStream(running.follow(after), _nothing)
        elif (log := self._record(name).log) is not None:
            return EventStream(_all(log[after + 1 :]), _nothing)
        raise ApiError(
            400, "Only responses created with background=true and stream=true can be streamed.", param="stream"
        )

    async def cancel(self, name: str) -> Response:
        """End a background response; one that has ended stays as it is. Raises ApiError (404, 400)."""
        if name in self._running:
            running = self._running[name]
            await running.cancel()
            return JSONResponse(running.run.response)
        record = self._record(name)
        if not json.loads(record.response)["background"]:
            raise ApiError(400, "Only responses created with background=true can be cancelled.")
        return Response(record.response, media_type="application/json")

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
        encoded = self._inputs[name] if name in self._running else self._record(name).input
        items = [json.loads(item) for item in encoded]
        if newest_first:
            items.reverse()
        if after is not None:
            places = [place for place, item in enumerate(items) if item["id"] == after]
            if not places:
                raise ApiError(400, f"after: no input item of this response has the id {after!r}.", param="after")
            items = items[places[0] + 1 :]
        page = items[:limit]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": "", "last_id": ""}
        return JSONResponse({"object": "list", "data": page, **ends, "has_more": len(items) > limit})

    # ── making ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _check_background(self, body: ResponseRequest) -> None:
        if not body.background:
            return
        if not self._store.most:
            raise unsupported("background", "background needs a store, and job.store_responses is 0 here.")
        if len(self._running) >= self._store.most:
            message = f"{len(self._running)} responses run in the background and job.store_responses is no more."
            raise ApiError(429, f"{message} Try later.", code="queue_full", retry_s=_RETRY_S)

    def _past(self, name: str | None) -> tuple[bytes, ...]:
        """The conversation that a request continues. Raises ApiError (404, 400)."""
        if name is None:
            return ()
        if name in self._running:
            raise ApiError(400, f"The response {name!r} has not ended yet.", param="previous_response_id")
        record = self._store.get(name)
        if record is None:
            raise ApiError(
                404,
                f"Previous response with id {name!r} not found: it was never stored, is deleted, or made room for "
                "others.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        return record.conversation

    def _prepare(
        self, body: ResponseRequest, model: ServedModel, name: str, past: Sequence[bytes]
    ) -> tuple[Prompt, dict[str, Any], Request]:
        """All that takes long; off the event loop. Raises ApiError (400, 404)."""
        prompt = prompt_of(body, model, [json.loads(item) for item in past], self._store.item)
        response = new_response(f"resp_{uuid.uuid4().hex}", name, body, prompt, model)
        (request,) = requests_of(
            response["id"],
            prompt.tokens,
            body,
            model,
            max_tokens=body.most_tokens,
            stop_tokens=harmony_stop_tokens(),
            logprobs=body.wanted_logprobs,
            param="input",
            constraint=prompt.constraint,
        )
        return prompt, response, request

    async def _now(
        self, body: ResponseRequest, run: Run, past: tuple[bytes, ...], given: tuple[bytes, ...]
    ) -> Response:
        if body.is_stored:
            run.on_end = lambda: self._keep(run, past, given, None)
        if body.stream:
            return EventStream(_encoded(run), run.close)
        try:
            return JSONResponse(await run.finish())
        finally:
            run.close()

    def _in_background(
        self, body: ResponseRequest, run: Run, past: tuple[bytes, ...], given: tuple[bytes, ...]
    ) -> Response:
        name = run.response["id"]

        def end(running: Background) -> None:
            del self._running[name], self._inputs[name]
            self._store.grow(-sum(map(len, running.log or ())))
            self._keep(run, past, given, running.log)

        running = self._running[name] = Background(run, bool(body.stream), self._store.grow, end)
        self._inputs[name] = given
        return EventStream(running.follow(-1), _nothing) if body.stream else JSONResponse(run.response)

    def _keep(self, run: Run, past: tuple[bytes, ...], given: tuple[bytes, ...], log: Sequence[bytes] | None) -> None:
        output = tuple(map(to_json, run.response["output"]))
        events = None if log is None else tuple(log)
        self._store.put(Record(run.response["id"], to_json(run.response), past, given, output, events))

    def _record(self, name: str) -> Record:
        record = self._store.get(name)
        if record is None:
            raise _not_found(name)
        return record


def _not_found(name: str) -> ApiError:
    return ApiError(404, f"Response with id {name!r} not found.", param="id")


async def _encoded(run: Run) -> AsyncIterator[bytes]:
    async for event in run.events():
        yield encode(event, event["type"])


async def _all(events: Sequence[bytes]) -> AsyncIterator[bytes]:
    for event in events:
        yield event


def _nothing() -> None:
    """A follower that leaves ends nothing."""
