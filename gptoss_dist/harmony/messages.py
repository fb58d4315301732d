"""One chat message of OpenAI's API, checked and turned into harmony messages.

Every function takes the message's index in the conversation, and raises PromptError naming it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from openai_harmony import Author, Message, Role  # type: ignore[import-untyped]

from gptoss_dist.errors import PromptError
from gptoss_dist.harmony.checks import check_text
from gptoss_dist.harmony.options import PromptOptions
from gptoss_dist.harmony.tools import FUNCTIONS, check_name

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_LONGEST_NAME = 128
_PARTICIPANT = re.compile(rf"[^\s<|\\/>]{{1,{_LONGEST_NAME}}}")
"""OpenAI's own pattern: letters of any script."""
_TEXT_PARTS = ("text", "input_text", "output_text")


def role_of(index: int, message: Any) -> str:
    """The message's role, one of ROLES."""
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ROLES:
        raise PromptError(f"messages[{index}]: the role is {role!r}; use one of: {', '.join(ROLES)}.")
    return str(role)


def text_of(index: int, message: Mapping[str, Any]) -> str:
    """The content, a string or a list of text parts, as one string."""
    content = message.get("content")
    where = f"messages[{index}] ({message['role']})"
    if isinstance(content, str):
        return check_text(content, where)
    if not isinstance(content, (list, tuple)):
        raise PromptError(f"{where}: the content is {type(content).__name__}; send a string or a list of text parts.")
    texts: list[str] = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        is_refusal = kind == "refusal" and message["role"] == "assistant"  # it is what was said
        if kind not in _TEXT_PARTS and not is_refusal:
            raise PromptError(f"{where}: content[{number}] is {kind!r}; gpt-oss reads text only, send text parts.")
        key = "refusal" if is_refusal else "text"
        texts.append(check_text(part.get(key), f"{where}: content[{number}].{key}"))
    return check_text("".join(texts), where)


def user(index: int, message: Mapping[str, Any]) -> Message:
    """A user message; a `name` goes into its header as harmony writes it, `user:NAME`."""
    author = Author(role=Role.USER)
    if message.get("name") is not None:
        author.name = _participant(message["name"], f"messages[{index}] (user): name")
    return Message.from_author_and_content(author, text_of(index, message))


def assistant(index: int, message: Mapping[str, Any], options: PromptOptions, called: dict[str, str]) -> list[Message]:
    """Analysis, then text, then tool calls; `called` learns each call's id, and its name, with its recipient."""
    where = f"messages[{index}] (assistant)"
    if message.get("function_call") is not None:
        raise PromptError(f"{where}: function_call is not supported; send tool_calls.")
    calls = message.get("tool_calls") or []
    if not isinstance(calls, (list, tuple)):
        raise PromptError(f"{where}: tool_calls is {type(calls).__name__}; send a list.")
    reasoning = _reasoning(where, message)
    text = None if message.get("content") is None else text_of(index, message)
    if text is None and not calls and reasoning is None:
        raise PromptError(f"{where}: neither content nor tool_calls; send one, or leave the message out.")
    out: list[Message] = []
    if reasoning is not None:
        out.append(_said(reasoning, "analysis"))
    if text or (text is not None and not calls and reasoning is None):
        out.append(_said(text, "commentary" if calls else "final"))
    out += [_call(f"{where}: tool_calls[{number}]", call, options, called) for number, call in enumerate(calls)]
    return out


def tool(index: int, message: Mapping[str, Any], called: Mapping[str, str]) -> Message:
    """A tool's result, addressed to the assistant on the channel of the call that it answers."""
    where = f"messages[{index}] (tool)"
    key = next((message[key] for key in ("tool_call_id", "name") if message.get(key) is not None), None)
    if key is None:
        raise PromptError(f"{where}: neither tool_call_id nor name; send the id of the call that this answers.")
    if not isinstance(key, str) or key not in called:
        known = ", ".join(called) or "none"
        raise PromptError(f"{where}: no earlier assistant message calls {key!r}; calls so far: {known}.")
    author = Author.new(Role.TOOL, called[key])
    result = Message.from_author_and_content(author, text_of(index, message))
    return result.with_channel(_channel(called[key])).with_recipient("assistant")


def _participant(name: Any, where: str) -> str:
    """A user's name. Raises PromptError for one that OpenAI refuses too."""
    if not _PARTICIPANT.fullmatch(check_text(name, where)):
        raise PromptError(
            f"{where}: {name[:_LONGEST_NAME]!r} cannot stand in a header; use 1 to {_LONGEST_NAME} characters without "
            "white space and without < > | / \\."
        )
    return str(name)


def _said(text: str, channel: str) -> Message:
    return Message.from_role_and_content(Role.ASSISTANT, text).with_channel(channel)


def _reasoning(where: str, message: Mapping[str, Any]) -> str | None:
    """The first reasoning key that holds text; an empty one counts as absent."""
    for key in REASONING_KEYS:
        if message.get(key):
            return check_text(message[key], f"{where}: {key}")
    return None


def _call(where: str, call: Any, options: PromptOptions, called: dict[str, str]) -> Message:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise PromptError(f'{where}: expected {{"id", "type": "function", "function": {{"name", "arguments"}}}}.')
    name = check_name(function.get("name"), f"{where}.function.name")
    recipient = options.recipient(name)
    called[name] = recipient
    if call.get("id") is not None:
        called[check_text(call["id"], f"{where}.id")] = recipient
    is_function = recipient.startswith(f"{FUNCTIONS}.")
    text = _arguments(f"{where}.function.arguments", function.get("arguments"), is_json=recipient != "python")
    said = Message.from_role_and_content(Role.ASSISTANT, text).with_channel(_channel(recipient))
    return said.with_recipient(recipient).with_content_type("<|constrain|>json" if is_function else "code")


def _channel(recipient: str) -> str:
    """Functions are called on commentary, built-in tools within the analysis."""
    return "commentary" if recipient.startswith(f"{FUNCTIONS}.") else "analysis"


def _arguments(where: str, arguments: Any, is_json: bool) -> str:
    """The arguments as the model wrote them: JSON text, kept to the letter, or an object, written as JSON."""
    try:
        if isinstance(arguments, Mapping):
            arguments = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        text = check_text(arguments, where)
        if is_json:
            json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(f"{where}: not JSON: {error}. Send the arguments as JSON text.") from error
    return text
