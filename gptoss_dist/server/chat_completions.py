"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response

from gptoss_dist.engine.request import Event, Request
from gptoss_dist.server.answer import AnswerReader, harmony_stop_tokens
from gptoss_dist.server.chat_request import ChatRequest, prompt_of
from gptoss_dist.server.chat_shapes import Head, choice_of, chunk_choice, delta_of, usage_of
from gptoss_dist.server.choices import Choice, Choices
from gptoss_dist.server.constraints import constraint_of
from gptoss_dist.server.sampling import requests_of
from gptoss_dist.server.served_model import ServedModel
from gptoss_dist.server.service import Service
from gptoss_dist.server.shown_text import Chosen
from gptoss_dist.server.sse import DONE, EventStream, encode


@dataclass(frozen=True)
class Chat:
    """A request under way: what was asked, and its answers as they grow."""

    body: ChatRequest
    head: Head
    choices: Choices[AnswerReader]

    def usage(self) -> dict[str, Any]:
        """So far."""
        readers = [one.reader for one in self.choices.all]
        return usage_of(len(self.choices.all[0].request.prompt), readers, self.choices.cached)


async def answer(service: Service, body: ChatRequest) -> Response:
    """Answer whole, or as a stream. Raises ApiError."""
    model = service.model
    name = model.check_name(body.model)
    body.check()
    chat = await _begin(service, body, model, name)
    if body.stream:
        return EventStream(_chunks(chat), chat.choices.stream.close)
    try:
        return JSONResponse(await _whole(chat))
    finally:
        chat.choices.stream.close()


async def _begin(service: Service, body: ChatRequest, model: ServedModel, name: str) -> Chat:
    chat_id = f"chatcmpl-{uuid.uuid4().hex}"
    with service.room(body.choices) as room:
        requests = await asyncio.to_thread(_requests, chat_id, body, model)
        stream = await service.start(requests, room)
    stops = model.generation.stop if body.stops is None else body.stops
    choices = [
        Choice(
            index,
            request,
            AnswerReader(
                request.id,
                stop=stops,
                functions=body.offered_names,
                one_call=body.parallel_tool_calls is False,
            ),
        )
        for index, request in enumerate(requests)
    ]
    return Chat(body, Head(chat_id, int(time.time()), name, model.fingerprint), Choices(choices, stream))


def _requests(chat_id: str, body: ChatRequest, model: ServedModel) -> list[Request]:
    """All that takes long; off the event loop. Raises ApiError (400)."""
    return requests_of(
        chat_id,
        prompt_of(body, model),
        body,
        model,
        max_tokens=body.most_tokens,
        stop_tokens=harmony_stop_tokens(),
        logprobs=body.wanted_logprobs,
        constraint=constraint_of(body),
    )


async def _whole(chat: Chat) -> dict[str, Any]:
    choices = chat.choices
    chosen: list[list[Chosen]] = [[] for _ in choices.all]
    async for event in choices.stream:
        choice = choices.of(event)
        chosen[choice.index] += [one for piece in choice.reader.take(event) for one in piece.chosen]
        choices.settle(choice)
    wanted = chat.body.logprobs
    content = [choice_of(one.index, one.reader, chosen[one.index] if wanted else None) for one in choices.all]
    return chat.head.completion(content, chat.usage())


async def _chunks(chat: Chat) -> AsyncIterator[bytes]:
    """The events of a stream: who speaks, the pieces, why it ended, and the usage where it is wanted."""
    wanted, choices = bool(chat.body.logprobs), chat.choices
    no_usage = {"usage": None} if chat.body.includes_usage else {}

    def chunk(choice: dict[str, Any]) -> bytes:
        return encode({**chat.head.chunk([choice]), **no_usage})

    def parts(event: Event) -> Iterator[bytes]:
        one = choices.of(event)
        if one.reader.finish_reason is not None:
            return
        for piece in one.reader.take(event):
            delta = delta_of(piece, one.reader.calls)
            yield chunk(chunk_choice(one.index, delta, piece.chosen if wanted else None))
        if choices.settle(one):
            yield chunk(chunk_choice(one.index, {}, finish=one.reader.finish_reason))

    for one in choices.all:
        yield chunk(chunk_choice(one.index, {"role": "assistant", "content": "", "refusal": None}))
    async for batch in choices.stream.batches():
        yield b"".join(part for event in batch for part in parts(event))
    if chat.body.includes_usage:
        yield encode(chat.head.chunk([], chat.usage()))
    yield DONE
