"""What a prompt says beside its messages: identity, effort, dates and tools; and the system message made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openai_harmony import (  # type: ignore[import-untyped]
    ReasoningEffort,
    SystemContent,
    ToolDescription,
)

from gptoss_dist.errors import PromptError
from gptoss_dist.harmony import tools as tool_schemas
from gptoss_dist.harmony.checks import check_text

_EFFORTS = {"low": ReasoningEffort.LOW, "medium": ReasoningEffort.MEDIUM, "high": ReasoningEffort.HIGH}


@dataclass(frozen=True)
class PromptOptions:
    """The part of a prompt that is not a message.

    system_identity: first line of the system message; None is OpenAI's own line, the empty string leaves it out.
    knowledge_cutoff: None is `2024-06`, the empty string leaves it out.
    current_date: `2025-06-28`; None leaves it out, so that a render depends on its arguments alone.
    builtin_tools: of `browser` and `python`.
    tools: function tools as in OpenAI's chat completions, {"type": "function", "function": {name, description,
        parameters}}.
    response_format: as in OpenAI's chat completions; the model is told of the schema of a json_schema, and nothing of
        other formats. What enforces it is gptoss_dist.harmony.grammar.
    """

    reasoning_effort: str = "medium"
    system_identity: str | None = None
    knowledge_cutoff: str | None = None
    current_date: str | None = None
    builtin_tools: tuple[str, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    response_format: Mapping[str, Any] | None = None

    def system_content(self) -> SystemContent:
        """The harmony system message's content. Raises PromptError on an unknown effort or built-in tool."""
        if self.reasoning_effort not in _EFFORTS:
            raise PromptError(f"reasoning_effort is {self.reasoning_effort!r}; use one of: {', '.join(_EFFORTS)}.")
        content = SystemContent(reasoning_effort=_EFFORTS[self.reasoning_effort])
        if self.system_identity is not None:
            content.model_identity = check_text(self.system_identity, "system_identity") or None
        if self.knowledge_cutoff is not None:
            content.knowledge_cutoff = check_text(self.knowledge_cutoff, "knowledge_cutoff") or None
        if self.current_date is not None:
            content.conversation_start_date = check_text(self.current_date, "current_date") or None
        for name in self.builtin_tools:
            content.with_tools(tool_schemas.builtin_namespace(name))
        return content

    def function_tools(self) -> list[ToolDescription]:
        """The function tools as harmony describes them, in order. Raises PromptError naming the tool's index."""
        described = [tool_schemas.describe(index, tool) for index, tool in enumerate(self.tools)]
        names = [tool.name for tool in described]
        for name in names:
            if names.count(name) > 1:
                raise PromptError(f"tools: the function {name!r} is defined {names.count(name)} times; keep one.")
            if name in self.builtin_tools:
                raise PromptError(f"tools: the function {name!r} has the name of a built-in tool; rename one of them.")
        return described

    def readable_tools(self) -> list[dict[str, Any]]:
        """The function tools for a chat template, which reads of a schema what harmony does. Raises PromptError."""
        return [tool_schemas.readable_tool(index, tool) for index, tool in enumerate(self.tools)]

    def recipient(self, tool_name: str) -> str:
        """Whom a call to `tool_name` is addressed to: a built-in tool's own name, or `functions.NAME`."""
        family = tool_name.partition(".")[0]
        return tool_name if family in self.builtin_tools else f"{tool_schemas.FUNCTIONS}.{tool_name}"
