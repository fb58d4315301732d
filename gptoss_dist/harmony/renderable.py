"""What a model said, as messages that harmony can render: it comes back with the conversation, right or wrong.

A name that cannot stand in a header loses the characters that cannot; arguments that are no JSON become a JSON text
that holds them. Everything else stays as it is, and is refused by `render` where it is wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_.-]")
_LONGEST_NAME = 128


def renderable_function(name: str, arguments: str) -> dict[str, str]:
    """The `function` of a call."""
    return {"name": _NOT_IN_A_NAME.sub("_", name)[:_LONGEST_NAME] or "_", "arguments": _json(arguments)}


def renderable(message: Any) -> Any:
    """A chat message; the assistant's calls, where they are calls at all, made renderable."""
    calls = message.get("tool_calls") if isinstance(message, Mapping) else None
    if not isinstance(calls, list) or not calls or message.get("role") != "assistant":
        return message
    return {**message, "tool_calls": [_renderable_call(call) for call in calls]}


def _renderable_call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, str):
        return call
    return {**call, "function": renderable_function(name, arguments)}


def _json(arguments: str) -> str:
    if not arguments.strip():
        return "{}"
    try:
        json.loads(arguments)
    except (ValueError, RecursionError):
        return json.dumps(arguments, ensure_ascii=False)
    return arguments
