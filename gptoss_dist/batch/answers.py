"""A record as requests to the engine, and their tokens as the body of its answer: what the server answers over HTTP.

Fields that are about the transport mean nothing here: `stream`, `stream_options`, `background` and `store` are dropped.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from gptoss_dist.batch.calls import Calls
from gptoss_dist.batch.records import RESPONSES, Record
from gptoss_dist.engine.request import Event, Request
from gptoss_dist.server.answer import AnswerReader, harmony_stop_tokens
from gptoss_dist.server.api_error import ApiError
from gptoss_dist.server.chat_request import ChatRequest, prompt_of
from gptoss_dist.server.chat_shapes import Head, choice_of, usage_of
from gptoss_dist.server.constraints import constraint_of
from gptoss_dist.server.request_fields import SamplingFields, describe
from gptoss_dist.server.request_stream import RequestStream
from gptoss_dist.server.responses_object import new_response
from gptoss_dist.server.responses_output import OutputWriter
from gptoss_dist.server.responses_prompt import prompt_of as response_prompt_of
from gptoss_dist.server.responses_reader import TurnReader
from gptoss_dist.server.responses_request import ResponseRequest
from gptoss_dist.server.responses_run import Run
from gptoss_dist.server.sampling import requests_of
from gptoss_dist.server.served_model import ServedModel
from gptoss_dist.server.shown_text import Chosen

TRANSPORT = ("stream", "stream_options", "background", "store")

B = TypeVar("B", bound=SamplingFields)


class Answer(ABC):
    """The answer to one record, as it grows."""

    requests: Sequence[Request]
    offered: Collection[str]
    """The functions that the model was told of."""

    @abstractmethod
    def take(self, event: Event) -> bool:
        """Read an event of one of the requests; whether that request needs no more tokens."""

    @property
    @abstractmethod
    def is_whole(self) -> bool:
        """Whether every request needs no more tokens."""

    def call(self, changed: threading.Event) -> Calls | None:  # noqa: ARG002
        """Once whole: start what has to be run before the answer can go on; None: nothing. Raises ApiError."""
        return None

    def go_on(self, calls: Calls) -> None:
        """The calls are over: `requests` are new. Raises ApiError."""
        raise NotImplementedError

    @abstractmethod
    def body(self) -> dict[str, Any]:
        """The whole answer as OpenAI's API gives it. Raises ApiError."""


def begin(record: Record, model: ServedModel) -> Answer:
    """Requests for a record. Raises ApiError for what is refused; longest answer: `generation.max_new_tokens`, where
    the record does not say.
    """
    kind = ResponseAnswer if record.url == RESPONSES else ChatAnswer
    return kind({name: value for name, value in record.body.items() if name not in TRANSPORT}, model)


class ChatAnswer(Answer):
    """A chat completion."""

    def __init__(self, fields: dict[str, Any], model: ServedModel) -> None:
        """Raises ApiError."""
        body = _validated(ChatRequest, fields)
        name = model.check_name(body.model)
        body.check()
        prompt = prompt_of(body, model)
        self._head = Head(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), name, model.fingerprint)
        self._with_logprobs = bool(body.logprobs)
        self._cached = 0
        self.requests = requests_of(
            self._head.id,
            prompt,
            body,
            model,
            max_tokens=_most_tokens(body.most_tokens, len(prompt), model),
            stop_tokens=harmony_stop_tokens(),
            logprobs=body.wanted_logprobs,
            constraint=constraint_of(body),
        )
        stops = model.generation.stop if body.stops is None else body.stops
        one_call = body.parallel_tool_calls is False
        self.offered = body.offered_names
        self._readers = {
            one.id: AnswerReader(one.id, stop=stops, functions=self.offered, one_call=one_call) for one in self.requests
        }
        self._chosen: dict[str, list[Chosen]] = {one.id: [] for one in self.requests}

    def take(self, event: Event) -> bool:
        """See `Answer.take`."""
        reader = self._readers[event.request_id]
        self._cached = max(self._cached, event.cached)
        self._chosen[event.request_id] += [one for piece in reader.take(event) for one in piece.chosen]
        return reader.finish_reason is not None

    @property
    def is_whole(self) -> bool:
        """See `Answer.is_whole`."""
        return all(one.finish_reason is not None for one in self._readers.values())

    def body(self) -> dict[str, Any]:
        """A `chat.completion`."""
        choices = [
            choice_of(index, self._readers[one.id], self._chosen[one.id] if self._with_logprobs else None)
            for index, one in enumerate(self.requests)
        ]
        usage = usage_of(len(self.requests[0].prompt), list(self._readers.values()), self._cached)
        return self._head.completion(choices, usage)


class ResponseAnswer(Answer):
    """A response. Its events are kept, and read as the server reads them once all are there."""

    def __init__(self, fields: dict[str, Any], model: ServedModel) -> None:
        """Raises ApiError."""
        body = _validated(ResponseRequest, fields)
        name = model.check_name(body.model)
        body.check()
        if body.previous_response_id is not None:
            message = "previous_response_id: nothing is stored in a batch. Send the whole conversation as input."
            raise ApiError(400, message, param="previous_response_id", code="unsupported_value")
        prompt = response_prompt_of(body, model, [], lambda _: None)
        self._response = new_response(f"resp_{uuid.uuid4().hex}", name, body, prompt, model)
        self._with_logprobs = body.wanted_logprobs is not None
        self.requests = requests_of(
            self._response["id"],
            prompt.tokens,
            body,
            model,
            max_tokens=_most_tokens(body.most_tokens, len(prompt.tokens), model),
            stop_tokens=harmony_stop_tokens(),
            logprobs=body.wanted_logprobs,
            param="input",
            constraint=prompt.constraint,
        )
        self._events: list[Event] = []
        stops, one_call = model.generation.stop if body.stops is None else body.stops, body.parallel_tool_calls is False
        self.offered = names = prompt.offer.names

        def reader() -> TurnReader:
            return TurnReader(self.requests[0].id, stop=stops, functions=names, one_call=one_call)

        self._reader, self._live = reader(), reader()

    def take(self, event: Event) -> bool:
        """See `Answer.take`."""
        if not self.is_whole:
            self._events.append(event)
            self._live.take(event)
        return self.is_whole

    @property
    def is_whole(self) -> bool:
        """See `Answer.is_whole`."""
        return self._live.finish_reason is not None

    def body(self) -> dict[str, Any]:
        """A `response`. Raises ApiError."""
        return asyncio.run(self._read())

    async def _read(self) -> dict[str, Any]:
        (request,) = self.requests
        stream = RequestStream([request.id], lambda _: None, len(self._events) + 1)
        for event in self._events:
            stream.put(event)
        return await Run(self._response, request, self._reader, OutputWriter(self._with_logprobs), stream).finish()


def _validated(kind: type[B], fields: dict[str, Any]) -> B:
    """The body as the API's own type. Raises ApiError (400) naming the first field that is wrong."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        message, param = describe(dict(error.errors(include_url=False)[0]))
        raise ApiError(400, message, param=param, code="invalid_value") from None


def _most_tokens(wanted: int | None, prompt_tokens: int, model: ServedModel) -> int | None:
    """Tokens of the answer: the record's own, else the run's, as far as they fit; None: all that fit."""
    most, room = model.generation.max_new_tokens, model.context - prompt_tokens
    return min(most, room) if wanted is None and most is not None and room >= 1 else wanted
