"""Structured output: which tokens a constrained turn of the assistant may write next.

A turn is harmony messages: reasoning on the analysis channel, then an answer on final or a call on commentary. The
structure is a small machine of our own (a tree of the headers, then a message's content, then its end token), and only
JSON is left to llguidance. One llguidance grammar for the whole turn would parse the reasoning too, byte by byte,
which needs memory for every byte and refuses text that is not UTF-8; here reasoning costs nothing, whatever it says.

Enforced:
    every message has a header of this request: its channel, its tool, its content type; no other control token appears.
    response_format: the final message is a JSON object, or JSON of the schema; then only `<|return|>`.
    tool_choice=none: no tool can be called, offered or not: earlier turns may hold calls. required: no final message; a
    call of one of the tools. A named function: the same with that one. Then arguments follow the tool's schema, and so
    do those of a tool with `strict` under auto.
Not enforced:
    what is said in analysis, and how long or how often; that the turn ends (max_tokens may cut it within JSON).
    parallel calls: gpt-oss ends its turn at `<|call|>`; a further call in the same turn is allowed, not asked for.
    properties come in the order of the schema; those that it does not name may come twice (as JSON allows).
    unless `strict` is true, what cannot be enforced of a schema is left out (grammar_lenient); else it is refused.
    a schema that proves too complex only far into its text: there nothing is allowed any more, and the output ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptoss_dist.errors import ConfigError
from gptoss_dist.harmony.grammar_schema import check_schema
from gptoss_dist.harmony.grammar_state import Constraint, Message, State
from gptoss_dist.harmony.grammar_tokens import CALL, END, RETURN
from gptoss_dist.harmony.grammar_tools import builtin_calls, function_call, tool_choice_of, validate_tools

__all__ = ["Constraint", "Message", "State", "check_schema", "constraint_for", "validate_tools"]

_ANY_OBJECT = {"type": "object"}


def constraint_for(
    response_format: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
    tool_choice: str | Mapping[str, Any] = "auto",
    parallel_tool_calls: bool = True,
    builtin_tools: Sequence[str] = (),
) -> Constraint | None:
    """What a chat request asks for, in the words of OpenAI's chat completions; None when nothing is to be constrained.

    builtin_tools: those of the prompt, of `browser` and `python`; their arguments are free, and `required` never means
    them. Every schema that will be used is checked here. Raises ConfigError naming the field and the path in a schema,
    PromptError for a malformed tool.
    """
    validate_tools(tools)
    choice, named = tool_choice_of(tool_choice, tools)
    answer = _answer(response_format)
    strict = any(tool["function"].get("strict") is True for tool in tools)
    if answer is None and choice == "auto" and not strict:
        return None
    messages = [Message("analysis")]
    if choice != "none":
        ends = (END, CALL) if parallel_tool_calls else (CALL,)
        messages += [
            function_call(index, tool, choice == "required", ends)
            for index, tool in enumerate(tools)
            if named in (None, tool["function"]["name"])
        ]
    if choice == "auto":
        messages += builtin_calls(builtin_tools)
        messages += [Message("commentary")] if answer is None and len(messages) > 1 else []
    if choice != "required":
        messages.append(answer or Message("final", ends=(RETURN,)))
    return Constraint(tuple(messages))


def _answer(response_format: Any) -> Message | None:
    """The final message that a response format asks for; None for text. Raises ConfigError."""
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return Message("final", schema=check_schema(_ANY_OBJECT, "response_format"), ends=(RETURN,))
    if kind != "json_schema":
        raise ConfigError(f"response_format: type is {kind!r}; use text, json_object or json_schema.")
    described = response_format.get("json_schema")
    if not isinstance(described, Mapping) or "schema" not in described:
        raise ConfigError('response_format: expected {"json_schema": {"name": …, "schema": {…}}}.')
    lenient = described.get("strict") is not True
    schema = check_schema(described["schema"], "response_format.json_schema.schema", lenient)
    return Message("final", schema=schema, lenient=lenient, ends=(RETURN,))
