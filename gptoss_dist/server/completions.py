"""POST /v1/completions: bare texts or token ids continued, without a conversation around them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response

from gptoss_dist.engine.request import Event, Request
from gptoss_dist.server.answer import harmony_stop_tokens
from gptoss_dist.server.choices import Choice, Choices
from gptoss_dist.server.completion_logprobs import logprobs_of
from gptoss_dist.server.completion_request import MOST_TOKENS, CompletionRequest, text_of, tokens_of
from gptoss_dist.server.plain_answer import PlainReader
from gptoss_dist.server.sampling import requests_of
from gptoss_dist.server.served_model import ServedModel
from gptoss_dist.server.service import Service
from gptoss_dist.server.shown_text import Shown
from gptoss_dist.server.sse import DONE, EventStream, encode


@dataclass(frozen=True)
class Completion:
    """A request under way."""

    body: CompletionRequest
    fields: dict[str, Any]
    choices: Choices[PlainReader]
    echoes: list[str]
    """What each choice's text begins with."""
    prompt_tokens: int

    def usage(self) -> dict[str, Any]:
        """So far."""
        count = sum(one.reader.tokens for one in self.choices.all)
        total = self.prompt_tokens + count
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": count, "total_tokens": total}


async def answer(service: Service, body: CompletionRequest) -> Response:
    """Answer whole, or as a stream. Raises ApiError."""
    model = service.model
    name = model.check_name(body.model)
    body.check()
    completion = await _begin(service, body, model, name)
    if body.stream:
        return EventStream(_chunks(completion), completion.choices.stream.close)
    try:
        return JSONResponse(await _whole(completion))
    finally:
        completion.choices.stream.close()


async def _begin(service: Service, body: CompletionRequest, model: ServedModel, name: str) -> Completion:
    base = f"cmpl-{uuid.uuid4().hex}"
    with service.room(body.choices * len(body.prompts)) as room:
        requests, echoes = await asyncio.to_thread(_prepare, base, body, model)
        stream = await service.start(requests, room)
    stops = model.generation.stop if body.stops is None else body.stops
    choices = [Choice(index, request, PlainReader(stops)) for index, request in enumerate(requests)]
    fields = {
        "id": base,
        "object": "text_completion",
        "created": int(time.time()),
        "model": name,
        "system_fingerprint": model.fingerprint,
    }
    prompt_tokens = sum(len(request.prompt) for request in requests) // body.choices
    return Completion(body, fields, Choices(choices, stream), echoes, prompt_tokens)


def _prepare(base: str, body: CompletionRequest, model: ServedModel) -> tuple[list[Request], list[str]]:
    """All that takes long, off the event loop: the requests, and what the text of each begins with.

    Raises ApiError (400).
    """
    requests: list[Request] = []
    echoes: list[str] = []
    for index, prompt in enumerate(tokens_of(body, model.vocabulary)):
        requests += requests_of(
            f"{base}-{index}",
            prompt,
            body,
            model,
            max_tokens=body.max_tokens or MOST_TOKENS,
            stop_tokens=harmony_stop_tokens(),
            logprobs=body.logprobs,
            param="prompt",
        )
        echoes += [text_of(prompt) if body.echo else ""] * body.choices
    return requests, echoes


async def _whole(completion: Completion) -> dict[str, Any]:
    choices = completion.choices
    pieces: list[list[Shown]] = [[] for _ in choices.all]
    async for event in choices.stream:
        choice = choices.of(event)
        pieces[choice.index] += choice.reader.take(event)
        choices.settle(choice)
    content = [
        _choice(completion, one.index, pieces[one.index], one.reader.finish_reason, is_first=True)
        for one in choices.all
    ]
    return {**completion.fields, "choices": content, "usage": completion.usage()}


async def _chunks(completion: Completion) -> AsyncIterator[bytes]:
    choices = completion.choices
    no_usage = {"usage": None} if completion.body.includes_usage else {}
    begun: set[int] = set()

    def parts(event: Event) -> Iterator[bytes]:
        one = choices.of(event)
        if one.reader.finish_reason is not None:
            return
        pieces = one.reader.take(event)
        if choices.settle(one) or pieces:
            content = _choice(completion, one.index, pieces, one.reader.finish_reason, one.index not in begun)
            begun.add(one.index)
            yield encode({**completion.fields, "choices": [content], **no_usage})

    async for batch in choices.stream.batches():
        yield b"".join(part for event in batch for part in parts(event))
    if completion.body.includes_usage:
        yield encode({**completion.fields, "choices": [], "usage": completion.usage()})
    yield DONE


def _choice(
    completion: Completion, index: int, pieces: Sequence[Shown], finish: str | None, is_first: bool
) -> dict[str, Any]:
    echo = completion.echoes[index] if is_first else ""
    return {
        "index": index,
        "text": echo + "".join(piece.text for piece in pieces),
        "logprobs": None if completion.body.logprobs is None else logprobs_of(pieces),
        "finish_reason": finish,
    }
