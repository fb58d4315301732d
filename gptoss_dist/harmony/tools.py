"""Tools as harmony describes them: OpenAI function schemas, and the two built-in tools."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from openai_harmony import ToolDescription, ToolNamespaceConfig  # type: ignore[import-untyped]

from gptoss_dist.errors import PromptError
from gptoss_dist.harmony.checks import check_text
from gptoss_dist.harmony.tool_schema import readable

FUNCTIONS = "functions"
BUILTIN_TOOLS = ("browser", "python")
# A name becomes part of a message header, where white space and angle brackets end it.
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


def builtin_namespace(name: str) -> ToolNamespaceConfig:
    """A built-in tool as openai-harmony describes it. Raises PromptError for any other name."""
    if name == "browser":
        return ToolNamespaceConfig.browser()
    if name == "python":
        return ToolNamespaceConfig.python()
    raise PromptError(f"builtin_tools: {name!r} is not one; there is: {', '.join(BUILTIN_TOOLS)}.")


def describe(index: int, tool: Any) -> ToolDescription:
    """One OpenAI function tool. Raises PromptError naming `index` when its schema cannot be rendered."""
    where = f"tools[{index}]"
    function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
    if not isinstance(function, Mapping):
        raise PromptError(f'{where}: expected {{"type": "function", "function": {{"name": …}}}}.')
    name = check_name(function.get("name"), f"{where}.function.name")
    description = function.get("description")
    return ToolDescription(
        name=name,
        description="" if description is None else check_text(description, f"{where}.function.description"),
        parameters=_parameters(function.get("parameters"), f"{where}.function.parameters"),
    )


def readable_tool(index: int, tool: Any) -> dict[str, Any]:
    """One OpenAI function tool, its parameters as `describe` gives them. Raises PromptError as that does."""
    described = describe(index, tool)
    function = {**tool["function"], "parameters": described.parameters}
    return {**tool, "function": {key: value for key, value in function.items() if value is not None}}


def check_name(name: Any, where: str) -> str:
    """`name` when it can stand in a message header. Raises PromptError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PromptError(f"{where}: {name!r} cannot stand in a header; use letters, digits, '_', '-' and '.'.")
    return name


def _parameters(parameters: Any, where: str) -> dict[str, Any] | None:
    """The JSON schema of the arguments; None for a function that takes none, which harmony writes `() => any`."""
    if parameters is None:
        return None
    if not isinstance(parameters, Mapping):
        raise PromptError(f"{where}: expected a JSON schema object, found {type(parameters).__name__}.")
    try:
        # NaN and infinities pass Python's json, and no JSON parser elsewhere.
        check_text(json.dumps(parameters, ensure_ascii=False, allow_nan=False), where)
        parameters = readable(parameters)
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(f"{where}: not a JSON schema: {error}.") from error
    is_empty_object = (
        parameters.get("type") == "object"
        and not parameters.get("properties")
        and not parameters.get("additionalProperties")
        and "oneOf" not in parameters
    )
    return None if not parameters or is_empty_object else parameters
