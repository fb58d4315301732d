"""A conversation rendered by the chat template of a checkpoint, and refused where that template would lose some of it.

The hub's own template for gpt-oss takes one message of instructions, one tool call a message and today's date, and
passes over the rest without a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from gptoss_dist.errors import PromptError
from gptoss_dist.harmony.conversation import PromptOptions
from gptoss_dist.model.tokenizer import load_tokenizer

Message = dict[str, Any]

_KEY = "job.template=tokenizer"
_INSTRUCTIONS = ("system", "developer")
_WAY_OUT = "job.template=harmony renders all of it."


def render_by_chat_template(messages: Sequence[Message], options: PromptOptions, folder: Path) -> list[int]:
    """Token ids of the prompt. Raises PromptError for what the template refuses or leaves out."""
    tokenizer = load_tokenizer(folder)
    messages = _instructions_joined(messages)
    if options.current_date is not None and "current_date" not in str(tokenizer.chat_template):
        raise PromptError(f"{_KEY}: the chat template in {folder} takes no date. Drop job.date; {_WAY_OUT}")
    if options.response_format is not None and "response_format" not in str(tokenizer.chat_template):
        raise PromptError(f"{_KEY}: the chat template in {folder} takes no response format. {_WAY_OUT}")
    try:
        text = tokenizer.apply_chat_template(
            messages,
            tools=options.readable_tools() or None,
            add_generation_prompt=True,
            tokenize=False,
            reasoning_effort=options.reasoning_effort,
            builtin_tools=list(options.builtin_tools),
            current_date=options.current_date or "",
            response_format=options.response_format,
        )
        tokens = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    except (TemplateError, TypeError, ValueError) as error:  # a template says what it cannot render in any of these
        raise PromptError(f"{_KEY}: the chat template refuses the conversation: {error}.") from None
    for where, part, may_be_quoted in _parts(messages):
        if part not in text and not (may_be_quoted and json.dumps(part, ensure_ascii=False) in text):
            raise PromptError(f"{_KEY}: the chat template in {folder} leaves out {where}, or alters it. {_WAY_OUT}")
    return tokens


def _instructions_joined(messages: Sequence[Message]) -> list[Message]:
    """The leading system and developer messages as one, which is what they become in harmony."""
    leading = list(takewhile(lambda message: message.get("role") in _INSTRUCTIONS, messages))
    texts = [message.get("content") for message in leading]
    if len(leading) < 2 or not all(isinstance(text, str) for text in texts):
        return list(messages)
    return [{**leading[0], "content": "\n\n".join(filter(None, texts))}, *messages[len(leading) :]]


def _parts(messages: Sequence[Message]) -> Iterator[tuple[str, str, bool]]:
    """Every text that has to be in the prompt: where it stands, the text, whether it may stand there as a JSON string.

    Reasoning may be dropped, and so may text beside a call, which some templates take for reasoning.
    """
    for index, message in enumerate(messages):
        calls = message.get("tool_calls") or []
        if not calls:
            is_result = message.get("role") == "tool"
            yield from ((f"messages[{index}]", text, is_result) for text in _texts(message.get("content")))
        for number, call in enumerate(calls):
            function = call.get("function", call) if isinstance(call, dict) else {}
            for key in ("name", "arguments"):
                if isinstance(value := function.get(key), str):
                    yield f"messages[{index}].tool_calls[{number}].{key}", value.strip(), False


def _texts(content: Any) -> list[str]:
    """The texts of a message's content, a string or a list of parts."""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return [text.strip() for text in texts if isinstance(text, str)]
