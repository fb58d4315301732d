"""One request to a server that speaks OpenAI's API, streamed: when its tokens arrive, and how many it counted.

Token ids go to `/v1/completions`, words to `/v1/chat/completions`. vLLM and its kin know `ignore_eos` and `min_tokens`,
which keep an output from ending early; to a server that refuses them nothing of the kind is sent.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx

from gptoss_dist.errors import ServerError
from gptoss_dist.schema.job.bench import BenchApi
from gptoss_dist.sse import EventParser

_SHOWN = 300
_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work number night point home water room mother area money "
    "story fact month lot right study book eye job word business issue side kind head house service friend power"
)
_WORDS = _TEXT.split()
"""Common words; each is about one token after a space."""


class Piece(NamedTuple):
    """What one event of a stream says: new tokens at least, the server's own count, or why it ended."""

    has_tokens: bool
    usage: Mapping[str, Any] | None
    ended: bool


@dataclass(frozen=True)
class Endpoint:
    """Where and how requests are sent."""

    model: str
    api: BenchApi
    forces_length: bool
    """Whether the server takes `ignore_eos` and `min_tokens`."""
    temperature: float = 0.0
    top_p: float = 1.0

    @property
    def path(self) -> str:
        """Of the URL."""
        return "/v1/chat/completions" if self.api is BenchApi.chat else "/v1/completions"

    def body(self, prompt: tuple[int, ...], max_tokens: int, seed: int) -> dict[str, Any]:
        """The JSON of a request."""
        body: dict[str, Any] = {
            "model": self.model,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.api is BenchApi.chat:
            body |= {"messages": [{"role": "user", "content": words(prompt)}], "max_completion_tokens": max_tokens}
        else:
            body |= {"prompt": list(prompt), "max_tokens": max_tokens}
        return body | ({"ignore_eos": True, "min_tokens": max_tokens} if self.forces_length else {})


def words(prompt: tuple[int, ...]) -> str:
    """As many words as the prompt has tokens, the same for the same prompt."""
    return " ".join(_WORDS[token % len(_WORDS)] for token in prompt)


async def stream(client: httpx.AsyncClient, endpoint: Endpoint, body: Mapping[str, Any]) -> AsyncIterator[Piece]:
    """The events of one answer as they arrive, to the end.

    Raises ServerError, in one sentence, for an answer that is not 200, that reports an error or breaks off.
    """
    ended = False
    try:
        async with client.stream("POST", endpoint.path, json=body) as response:
            if response.status_code != 200:
                raise ServerError(_refusal(endpoint.path, response.status_code, await response.aread()))
            parser = EventParser()
            async for chunk in response.aiter_bytes():
                for event in parser.feed(chunk):
                    if event == "[DONE]":
                        return
                    piece = read_event(event)
                    ended = ended or piece.ended
                    yield piece
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise ServerError(f"{endpoint.path}: no connection to {client.base_url}: {_said(error)}") from None
    except httpx.TimeoutException as error:
        raise ServerError(f"{endpoint.path}: nothing came for too long ({type(error).__name__})") from None
    except (httpx.HTTPError, UnicodeDecodeError) as error:
        raise ServerError(f"{endpoint.path}: the stream broke off: {_said(error)}") from None
    if not ended:
        raise ServerError(f"{endpoint.path}: the stream broke off: it ended without a reason and without [DONE]")


def read_event(event: str) -> Piece:
    """What one `data` of a completions or chat stream says; ServerError for an error, and for what is no such event."""
    try:
        content = json.loads(event)
    except json.JSONDecodeError:
        raise ServerError(f"the stream holds what is no JSON: {_short(event)}") from None
    if not isinstance(content, dict) or content.get("error"):
        raise ServerError(f"the stream reports an error: {_short(event)}")
    has_tokens = ended = False
    for choice in content.get("choices") or []:
        delta = choice.get("delta") or {}
        parts = (choice.get("text"), *(value for name, value in delta.items() if name != "role"))
        has_tokens = has_tokens or any(parts)
        ended = ended or choice.get("finish_reason") is not None
    return Piece(has_tokens, content.get("usage"), ended)


async def first_model(client: httpx.AsyncClient) -> str:
    """The first model that the server lists; ServerError if it cannot be reached, or lists none."""
    try:
        response = await client.get("/v1/models")
    except httpx.HTTPError as error:
        raise ServerError(
            f"no answer from {client.base_url}: {_said(error)}. Is the server up, and job.target right?"
        ) from None
    if response.status_code != 200:
        raise ServerError(_refusal("/v1/models", response.status_code, response.content))
    try:
        return str(response.json()["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise ServerError(
            f"{client.base_url}/v1/models lists no model: {_short(response.text)}. Name one: job.target_model=NAME."
        ) from None


def _refusal(path: str, status: int, content: bytes) -> str:
    key = " (the key is read from OPENAI_API_KEY)" if status in (401, 403) else ""
    return f"{path}: HTTP {status}{key}: {_short(content.decode('utf-8', 'replace'))}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[:_SHOWN] + "…"


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
