"""Tools, tool_choice and text.format of the Responses API, in the words of Chat Completions.

Responses                                              Chat Completions
{type: function, name, parameters, strict}             {type: function, function: {name, parameters, strict}}
{type: function, name}                                 {type: function, function: {name}}
{type: allowed_tools, mode, tools}                     only those tools, and tool_choice=mode
{type: json_schema, name, schema, strict}              {type: json_schema, json_schema: {name, schema, strict}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptoss_dist.server.api_error import ApiError, unsupported
from gptoss_dist.server.offer import Offer, allowed, check_choice, listed

_FUNCTION_FIELDS = ("name", "description", "parameters", "strict")
_SCHEMA_FIELDS = ("name", "description", "schema", "strict")


def offer_of(tools: Sequence[Mapping[str, Any]] | None, choice: str | Mapping[str, Any] | None) -> Offer:
    """What a request offers. Raises ApiError (400) for tools that are no functions, and for an unknown choice."""
    functions = tuple(_function(index, tool) for index, tool in enumerate(tools or ()))
    check_choice(functions, choice)
    if choice == "none":
        return Offer((), "none")
    if choice is None or isinstance(choice, str):
        return Offer(functions, choice or "auto")
    kind = choice.get("type")
    if kind == "function":
        return Offer(functions, {"type": "function", "function": {"name": _name(choice)}})
    if kind == "allowed_tools":
        return _allowed(functions, choice)
    raise unsupported("tool_choice", f"tool_choice: type is {kind!r}; use function or allowed_tools.")


def format_of(text_format: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """`text.format` as a response_format; what is wrong in it is told by the grammar. Raises ApiError (400)."""
    if text_format is None:
        return None
    if text_format.get("type") != "json_schema":
        return dict(text_format)
    for field in ("name", "schema"):
        if text_format.get(field) is None:
            raise ApiError(400, f"text.format.{field} is missing.", param=f"text.format.{field}")
    if not isinstance(text_format["name"], str):
        raise ApiError(400, "text.format.name: a text is needed.", param="text.format.name")
    given = {field: text_format[field] for field in _SCHEMA_FIELDS if text_format.get(field) is not None}
    return {"type": "json_schema", "json_schema": given}


def tool_echo(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A function as a response repeats it."""
    echo = {field: tool.get(field) for field in _FUNCTION_FIELDS}
    return {"type": "function", **echo, "strict": bool(tool.get("strict"))}


def _function(index: int, tool: Mapping[str, Any]) -> dict[str, Any]:
    kind = tool.get("type")
    if kind != "function":
        raise unsupported(f"tools.[{index}].type", f"tools[{index}]: type is {kind!r}; this server has functions only.")
    if tool.get("name") is None:
        raise ApiError(400, f"tools[{index}].name is missing.", param=f"tools.[{index}].name", code="missing_field")
    return {"type": "function", "function": {field: tool[field] for field in _FUNCTION_FIELDS if field in tool}}


def _allowed(functions: Sequence[dict[str, Any]], choice: Mapping[str, Any]) -> Offer:
    names = [_name(one) for one in listed(choice, "tool_choice")]
    return allowed(functions, choice.get("mode", "auto"), names, "tool_choice")


def _name(choice: Mapping[str, Any]) -> str:
    name = choice.get("name")
    if not isinstance(name, str):
        raise ApiError(400, 'tool_choice: expected {"type": "function", "name": …}.', param="tool_choice")
    return name
