"""From a request to a response under way, and from that to what is stored of it."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_dist.engine.request import Request
from gptoss_dist.server.answer import harmony_stop_tokens
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
from gptoss_dist.server.store import Record, encode


@dataclass(frozen=True)
class Begun:
    """A response under way; the items before it, `past`, and those of its request, `given`, as the store keeps them."""

    run: Run
    past: tuple[bytes, ...]
    given: tuple[bytes, ...]

    @property
    def id(self) -> str:
        """Of the response."""
        return str(self.run.response["id"])

    def record(self, log: Sequence[bytes] | None = None) -> Record:
        """What is kept of it, once it has ended; `log` are its events, if they were kept."""
        output = tuple(map(encode, self.run.response["output"]))
        events = None if log is None else tuple(log)
        return Record(self.id, encode(self.run.response), self.past, self.given, output, events)


async def begin(service: Service, body: ResponseRequest, name: str, past: tuple[bytes, ...], find: Find) -> Begun:
    """Queue the request of a response that the client calls by the model's `name`. Raises ApiError."""
    model = service.model
    prompt, response, request = await asyncio.to_thread(_prepare, body, model, name, past, find)
    stream = await service.start([request])
    reader = TurnReader(
        request.id,
        stop=model.generation.stop if body.stops is None else body.stops,
        functions=prompt.offer.names,
        one_call=body.parallel_tool_calls is False,
    )
    run = Run(response, request, reader, OutputWriter(body.wanted_logprobs is not None), stream)
    return Begun(run, past, tuple(map(encode, prompt.items)))


def _prepare(
    body: ResponseRequest, model: ServedModel, name: str, past: Sequence[bytes], find: Find
) -> tuple[Prompt, dict[str, Any], Request]:
    """All that takes long; off the event loop. Raises ApiError (400, 404)."""
    prompt = prompt_of(body, model, [json.loads(item) for item in past], find)
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
