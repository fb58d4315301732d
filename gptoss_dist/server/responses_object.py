"""A response as OpenAI writes it: what was asked for, repeated, and what has come of it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from gptoss_dist.server.api_error import ApiError
from gptoss_dist.server.responses_prompt import Prompt
from gptoss_dist.server.responses_reader import TurnReader
from gptoss_dist.server.responses_request import ResponseRequest
from gptoss_dist.server.responses_tools import tool_echo
from gptoss_dist.server.served_model import ServedModel


def new_response(
    response_id: str, name: str, body: ResponseRequest, prompt: Prompt, model: ServedModel
) -> dict[str, Any]:
    """A response that has not begun. Raises ApiError (400) for what cannot be repeated as JSON."""
    defaults = model.generation
    response = {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "status": "queued" if body.background else "in_progress",
        "background": bool(body.background),
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.most_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": _reasoning(body, model),
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.is_stored,
        "temperature": defaults.temperature if body.temperature is None else body.temperature,
        "text": _text(body),
        "tool_choice": _choice(body),
        "tools": [tool_echo(tool) for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": defaults.top_p if body.top_p is None else body.top_p,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
    }
    if prompt.dropped:
        response["dropped_items"] = prompt.dropped
    check_json(response)
    return response


def usage_of(prompt_tokens: int, reader: TurnReader, cached: int = 0) -> dict[str, Any]:
    """Tokens of the prompt and of the answer; `cached` of the prompt were found in the cache."""
    return {
        "input_tokens": prompt_tokens,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": reader.tokens,
        "output_tokens_details": {"reasoning_tokens": reader.reasoning_tokens},
        "total_tokens": prompt_tokens + reader.tokens,
    }


def check_json(content: Mapping[str, Any]) -> None:
    """Raise ApiError (400) for numbers and characters that JSON in UTF-8 cannot hold, and Python's reader lets in."""
    for name, value in content.items():
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
            raise ApiError(400, f"{name}: cannot be written as JSON: {error}.", param=name) from None


def _reasoning(body: ResponseRequest, model: ServedModel) -> dict[str, Any]:
    given = body.reasoning
    effort = given.effort if given else None
    return {
        "effort": effort or model.generation.reasoning_effort.value,
        "summary": given.summary if given else None,
    }


def _text(body: ResponseRequest) -> dict[str, Any]:
    given = body.text
    verbosity = given.verbosity if given else None
    return {"format": (given.format if given else None) or {"type": "text"}, "verbosity": verbosity or "medium"}


def _choice(body: ResponseRequest) -> str | dict[str, Any]:
    return "auto" if body.tool_choice is None else body.tool_choice
