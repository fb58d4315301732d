"""A line of input as a record: its id, and the request it asks for, or why it asks for none.

    {"custom_id": …, "method": "POST", "url": "/v1/chat/completions", "body": {…}}     OpenAI's batch format
    {"id": …, "prompt": "…"}                                                           one user message
    {"id": …, "messages": […]}                                                         a conversation

The plain forms may carry every other field of a chat completion beside it: max_tokens, temperature, tools, …
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
KEY_BYTES = 16
_URLS = (CHAT, RESPONSES)


@dataclass(frozen=True)
class Refusal:
    """Why a record gets an error line: an HTTP status, OpenAI's error code, and a message."""

    status: int
    code: str
    message: str


@dataclass(frozen=True)
class Record:
    """One line. `number` counts the records of all inputs from 0; `where` is FILE:LINE."""

    number: int
    where: str
    id: str
    url: str = CHAT
    body: dict[str, Any] = field(default_factory=dict)
    size: int = 0
    """Bytes of the line."""
    refusal: Refusal | None = None
    has_id: bool = True
    """Whether the line names its id; else the id is its place."""

    @property
    def key(self) -> bytes:
        """Stands for the id where many are kept."""
        return key_of(self.id)


def key_of(record_id: str) -> bytes:
    """Bytes that differ where ids do; an id may hold half a character."""
    return hashlib.blake2b(record_id.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


def parse(line: bytes, number: int, where: str, default_id: str) -> Record:
    """The record of a line. Nothing is raised: what cannot be understood becomes a `Refusal`."""

    def refused(code: str, message: str, given: str | int | None = None) -> Record:
        refusal = Refusal(400, code, f"{where}: {message}")
        record_id = default_id if given is None else str(given)
        return Record(number, where, record_id, size=len(line), refusal=refusal, has_id=given is not None)

    try:
        content = json.loads(line)
    except RecursionError:
        return refused("invalid_json", "the line is nested too deeply.")
    except ValueError as error:
        return refused("invalid_json", f"the line is not JSON: {error}.")
    if not isinstance(content, dict):
        return refused("invalid_json", f"the line holds {type(content).__name__}, not an object.")
    name = "custom_id" if "custom_id" in content else "id"
    given = content.get(name)
    if given is not None and (isinstance(given, bool) or not isinstance(given, str | int) or given == ""):
        return refused("invalid_id", f"{name} must be a text or a whole number.")
    found = _request(content)
    if isinstance(found, Refusal):
        return refused(found.code, found.message, given)
    record_id = default_id if given is None else str(given)
    return Record(number, where, record_id, *found, size=len(line), has_id=given is not None)


def _request(content: dict[str, Any]) -> tuple[str, dict[str, Any]] | Refusal:
    """Address and body of what a line asks for."""
    if "body" not in content:
        return _plain(content)
    body, method, url = content["body"], content.get("method", "POST"), content.get("url", CHAT)
    if not isinstance(body, dict):
        return Refusal(400, "invalid_body", "body must be an object.")
    if method != "POST":
        return Refusal(400, "invalid_method", f"method is {method!r}; a batch takes POST.")
    if url not in _URLS:
        return Refusal(400, "invalid_url", f"url is {url!r}; a batch takes {' and '.join(_URLS)}.")
    return url, body


def _plain(content: dict[str, Any]) -> tuple[str, dict[str, Any]] | Refusal:
    body = {name: value for name, value in content.items() if name not in ("id", "custom_id", "prompt")}
    has_prompt = "prompt" in content
    if has_prompt == ("messages" in content):
        return Refusal(400, "invalid_record", "one of body, prompt and messages is needed.")
    if has_prompt:
        if not isinstance(content["prompt"], str):
            return Refusal(400, "invalid_record", "prompt must be a text.")
        body["messages"] = [{"role": "user", "content": content["prompt"]}]
    return CHAT, body
