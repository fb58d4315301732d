"""Answers from any server of the Chat Completions API, streamed.

The stream is server-sent events: one JSON object in the data of each, `[DONE]` at the end.
Reasoning comes as `reasoning` or `reasoning_content`, as servers differ.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import httpx

from gptoss_dist.chat.conversation import Conversation, Piece, Turn
from gptoss_dist.errors import ConfigError, ServerError
from gptoss_dist.schema.generation import GenerationConf
from gptoss_dist.sse import EventParser

_CONNECT_S, _SILENCE_S = 10.0, 600.0


class RemoteModel:
    """Who answers: the model `model` of a server, or its first one."""

    def __init__(self, target: str, model: str | None, generation: GenerationConf) -> None:
        """Ask the server for its models. Raises ServerError if there is no server, or it does not let us in."""
        if not target.startswith(("http://", "https://")):
            raise ConfigError(f"job.target={target}: give the server's address, such as http://localhost:8000.")
        self._target = target.rstrip("/").removesuffix("/v1")
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(_SILENCE_S, connect=_CONNECT_S))
        self._generation = generation
        self._model = model or self._first_model()

    @property
    def name(self) -> str:
        """The model and where it is."""
        return f"{self._model} at {self._target}"

    def idle(self) -> None:
        """Nothing to do between turns."""

    def answer(self, conversation: Conversation, turn: Turn) -> Iterator[Piece]:
        """The next answer piece by piece. Raises ServerError with what the server said."""
        try:
            with self._client.stream(
                "POST", f"{self._target}/v1/chat/completions", json=self._body(conversation)
            ) as got:
                _check(got)
                yield from _pieces(got, turn)
        except httpx.HTTPError as error:
            raise ServerError(f"{self._target}: {_reason(error)}. Is the server still running?") from None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _body(self, conversation: Conversation) -> dict[str, Any]:
        generation = self._generation
        body: dict[str, Any] = {
            "model": self._model,
            "messages": conversation.prompt(),
            "stream": True,
            "stream_options": {"include_usage": True},
            "reasoning_effort": conversation.effort.value,
            "temperature": generation.temperature,
            "top_p": generation.top_p,
        }
        optional = {
            "max_completion_tokens": generation.max_new_tokens,
            "tools": list(conversation.tools) or None,
            "seed": generation.seed,
            "stop": list(generation.stop) or None,
            "top_k": generation.top_k,
            "min_p": generation.min_p or None,
        }
        return body | {key: value for key, value in optional.items() if value is not None}

    def _first_model(self) -> str:
        try:
            got = self._client.get(f"{self._target}/v1/models")
            _check(got)
            return str(got.json()["data"][0]["id"])
        except httpx.HTTPError as error:
            raise ServerError(f"{self._target}: {_reason(error)}. Is a server running there?") from None
        except (ValueError, LookupError, TypeError):
            raise ServerError(
                f"{self._target}/v1/models lists no model. Name one with job.target_model=NAME, or check the address."
            ) from None


def _check(got: httpx.Response) -> None:
    """Raise ServerError with the server's own words."""
    if got.is_success:
        return
    got.read()
    try:
        said = got.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        said = got.text[:300].strip() or got.reason_phrase
    hint = " Set OPENAI_API_KEY." if got.status_code == httpx.codes.UNAUTHORIZED else ""
    raise ServerError(f"{got.request.url}: {got.status_code}: {said}{hint}")


def _pieces(got: httpx.Response, turn: Turn) -> Iterator[Piece]:
    ids: dict[int, str] = {}
    for data in _events(got):
        if data == "[DONE]":
            return
        try:
            chunk = json.loads(data)
        except ValueError:
            raise ServerError(f"{got.request.url}: a piece of the stream is not JSON: {data[:100]}") from None
        if error := chunk.get("error"):
            raise ServerError(f"{got.request.url}: {error.get('message', error)}")
        if usage := chunk.get("usage"):
            turn.tokens = usage.get("completion_tokens", turn.tokens)
        for choice in chunk.get("choices") or []:
            turn.finish = choice.get("finish_reason") or turn.finish
            yield from _pieces_of(choice.get("delta") or {}, ids)
    if turn.finish is None:
        raise ServerError(f"{got.request.url}: the stream broke off. Is the server still running?")


def _events(got: httpx.Response) -> Iterator[str]:
    """The data of each event; lines end as the events' own specification says, and at no other sign of Unicode."""
    parser = EventParser()
    try:
        for chunk in got.iter_bytes():
            yield from parser.feed(chunk)
    except UnicodeDecodeError as error:
        raise ServerError(f"{got.request.url}: the stream is not UTF-8: {error}.") from None


def _pieces_of(delta: dict[str, Any], ids: dict[int, str]) -> Iterator[Piece]:
    if text := delta.get("reasoning_content") or delta.get("reasoning"):
        yield Piece("analysis", text)
    if text := delta.get("content"):
        yield Piece("final", text)
    for call in delta.get("tool_calls") or []:
        function = call.get("function") or {}
        place = call.get("index", 0)
        ids[place] = call.get("id") or ids.get(place, f"call_{place}")
        yield Piece("call", function.get("arguments") or "", function.get("name"), ids[place])


def _reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
