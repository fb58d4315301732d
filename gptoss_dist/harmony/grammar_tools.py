"""The part of a request that speaks of tools: checked, and turned into the messages that may call them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptoss_dist.errors import ConfigError, PromptError
from gptoss_dist.harmony.grammar_schema import check_schema
from gptoss_dist.harmony.grammar_state import Message
from gptoss_dist.harmony.grammar_tokens import CALL
from gptoss_dist.harmony.tools import BUILTIN_TOOLS, FUNCTIONS, describe

_BROWSER = ("browser.search", "browser.open", "browser.find")
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


def validate_tools(tools: Any) -> None:
    """Check a request's `tools` as a whole. Raises PromptError naming the tool, or the name that comes twice."""
    if not isinstance(tools, Sequence) or isinstance(tools, str | bytes):
        raise PromptError(f"tools: expected a list, found {type(tools).__name__}.")
    names = [describe(index, tool).name for index, tool in enumerate(tools)]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise PromptError(f"tools[{index}].function.name: {name!r} is tools[{names.index(name)}] already.")
        strict = tools[index]["function"].get("strict")
        if strict is not None and not isinstance(strict, bool):
            raise PromptError(f"tools[{index}].function.strict: {strict!r}; use true or false.")


def tool_choice_of(tool_choice: Any, tools: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    """(`auto`, `none` or `required`; the function that has to be called). Raises ConfigError."""
    named = None
    if isinstance(tool_choice, Mapping):
        function = tool_choice.get("function")
        named = function.get("name") if isinstance(function, Mapping) else None
        if tool_choice.get("type") != "function" or not isinstance(named, str):
            raise ConfigError('tool_choice: expected {"type": "function", "function": {"name": …}}.')
        names = [tool["function"]["name"] for tool in tools]
        if named not in names:
            raise ConfigError(f"tool_choice: no function {named!r} among the tools: {', '.join(names) or 'none'}.")
        tool_choice = "required"
    if tool_choice not in ("auto", "none", "required"):
        raise ConfigError(f"tool_choice: {tool_choice!r}; use auto, none, required or a function.")
    if tool_choice == "required" and not tools:
        raise ConfigError("tool_choice: required, and there are no tools to call; send tools.")
    return tool_choice, named


def function_call(index: int, tool: Mapping[str, Any], required: bool, ends: tuple[int, ...]) -> Message:
    """A call of a function; its arguments follow its schema when it is strict, or when it has to be called."""
    function = tool["function"]
    recipient = f"{FUNCTIONS}.{function['name']}"
    strict = function.get("strict") is True
    if not strict and not required:
        return Message("commentary", recipient, ends=ends)
    where = f"tools[{index}].function.parameters"
    parameters = function.get("parameters") or _NO_ARGUMENTS
    if parameters.get("type", "object") != "object":
        raise ConfigError(f"{where}.type: {parameters['type']!r}; the arguments of a function are an object.")
    schema = check_schema({"type": "object", **parameters}, where, lenient=not strict)
    return Message("commentary", recipient, schema, lenient=not strict, ends=ends)


def builtin_calls(names: Sequence[str]) -> list[Message]:
    """Calls of built-in tools, which the model writes on analysis or commentary. Raises ConfigError."""
    unknown = [name for name in names if name not in BUILTIN_TOOLS]
    if unknown:
        raise ConfigError(f"builtin_tools: {unknown[0]!r} is not one; there is: {', '.join(BUILTIN_TOOLS)}.")
    recipients = [recipient for name in names for recipient in (_BROWSER if name == "browser" else (name,))]
    return [Message(channel, to, ends=(CALL,)) for to in recipients for channel in ("analysis", "commentary")]
