"""From a request to a response under way, and from that to what is stored of it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_dist.engine.request import Request
from gptoss_dist.server.answer import harmony_stop_tokens
from gptoss_dist.server.event_log import EventLog
from gptoss_dist.server.responses_input import Find
from gptoss_dist.server.responses_object import new_response
from gptoss_dist.server.responses_output import OutputWriter
from gptoss_dist.server.responses_prompt import Prompt, prompt_of
from gptoss_dist.server.responses_reader import TurnReader
from gptoss_dist.server.responses_request import ResponseRequest
from gptoss_dist.server.responses_run import Run
from gptoss_dist.server.sampling import requests_of
from gptoss_dist.server.served_model import ServedModel
from gptoss_dist.server.service import Service
from gptoss_dist.server.store import Record, StoredItem, encode, stored


@dataclass(frozen=True)
class Begun:
    """A response under way; the items before it, `past`, and those of its request, `given`, as the store keeps them."""

    run: Run
    past: tuple[StoredItem, ...]
    given: tuple[StoredItem, ...]

    @property
    def id(self) -> str:
        """Of the response."""
        return str(self.run.response["id"])

    def record(self, log: EventLog | None = None) -> Record:
        """What is kept of it, once it has ended; `log` are its events, if they were kept."""
        response = self.run.response
        return Record(self.id, encode(response), self.past, self.given, stored(response["output"]), log)


async def begin(service: Service, body: ResponseRequest, name: str, past: tuple[StoredItem, ...], find: Find) -> Begun:
    """Queue the request of a response that the client calls by the model's `name`. Raises ApiError."""
    model = service.model
    with service.room(1) as room:
        prompt, given, response, request = await asyncio.to_thread(_prepare, body, model, name, past, find)
        stream = await service.start([request], room)
    reader = TurnReader(
        request.id,
        stop=model.generation.stop if body.stops is None else body.stops,
        functions=prompt.offer.names,
        one_call=body.parallel_tool_calls is False,
    )
    run = Run(response, request, reader, OutputWriter(body.wanted_logprobs is not None), stream)
    return Begun(run, past, given)


async def count_tokens(model: ServedModel, body: ResponseRequest, past: Sequence[StoredItem], find: Find) -> int:
    """Of the prompt that `begin` would make. Raises ApiError (400, 404)."""
    return len((await asyncio.to_thread(_prompt, body, model, past, find)).tokens)


def _prompt(body: ResponseRequest, model: ServedModel, past: Sequence[StoredItem], find: Find) -> Prompt:
    return prompt_of(body, model, [item.decoded for item in past], find)


def _prepare(
    body: ResponseRequest, model: ServedModel, name: str, past: Sequence[StoredItem], find: Find
) -> tuple[Prompt, tuple[StoredItem, ...], dict[str, Any], Request]:
    """All that takes long; off the event loop. Raises ApiError (400, 404)."""
    prompt = _prompt(body, model, past, find)
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
    return prompt, stored(prompt.items), response, request
