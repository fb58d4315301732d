"""Errors of harmony and its grammar, which speak of chat messages, in the words of the Responses API."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gptoss_dist.errors import ConfigError, PromptError
from gptoss_dist.server.api_error import ApiError

_MESSAGE = re.compile(r"messages\[(\d+)\]")
_WORDS = (
    ("response_format.json_schema.schema", "text.format.schema"),
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("reasoning_effort", "reasoning.effort"),
    ("].function.", "]."),
)
_FIELD = re.compile(r"(input|tools|tool_choice|text\.format|reasoning\.effort|instructions)((?:\[\d+\])?)")


def client_error(error: PromptError | ConfigError, places: Sequence[int | None] = (), before: int = 0) -> ApiError:
    """400 that names the field of the request.

    `places` are the items that chat messages begin with, None for the instructions; the first `before` items came with
    previous_response_id.
    """
    message = str(error)
    for ours, theirs in _WORDS:
        message = message.replace(ours, theirs)
    if message.startswith("messages:"):
        message = "input: there is nothing to answer; send at least one item."
    message = _MESSAGE.sub(lambda found: _place(int(found[1]), places, before), message)
    if message.startswith("previous_response_id"):
        return ApiError(400, message, param="previous_response_id", code="invalid_value")
    found = _FIELD.match(message)
    param = None if found is None else found[1] + (f".{found[2]}" if found[2] else "")
    return ApiError(400, message, param=param, code="invalid_value" if param else None)


def _place(index: int, places: Sequence[int | None], before: int) -> str:
    place = places[index] if index < len(places) else None
    if place is None:
        return "instructions"
    if place < before:
        return f"previous_response_id: item {place} of its conversation"
    return f"input[{place - before}]"
