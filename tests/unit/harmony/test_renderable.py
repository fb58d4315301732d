from __future__ import annotations

import pytest

from gptoss_dist.errors import PromptError
from gptoss_dist.harmony.conversation import render
from gptoss_dist.harmony.renderable import renderable, renderable_function

USER = {"role": "user", "content": "hi"}


def said(name: object, arguments: object, role: str = "assistant") -> dict:
    call = {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": role, "content": None, "tool_calls": [call]}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [('{"a": 1}', '{"a": 1}'), ("", "{}"), (" \n", "{}"), ("{'a'", "\"{'a'\""), ("[" * 20_000, f'"{"[" * 20_000}"')],
)
def test_arguments_that_are_no_json_become_a_json_text(arguments, text):
    assert renderable_function("f", arguments) == {"name": "f", "arguments": text}


def test_whatever_a_model_said_can_be_rendered():
    for name in ("f", "wétter", "a b", "", "x" * 200, "<|end|>"):
        for arguments in ("{}", "{", "print(1)", "", "<|call|>"):
            message = said(name, arguments)
            assert render([USER, renderable(message)])
            assert message == said(name, arguments), "the message itself is not changed"


@pytest.mark.parametrize(
    "message",
    [
        USER, "text", None, {"role": "assistant", "tool_calls": 5}, {"role": "assistant", "tool_calls": [5]},
        {"role": "assistant", "tool_calls": [{"function": 5}]}, said(5, "{}"), said("f", None), said("f", {"a": 1}),
        said("f g", "{", role="user"),
    ],
)  # fmt: skip
def test_everything_else_stays_as_it_is(message):
    assert renderable(message) == message


def test_what_stays_wrong_is_refused_by_name():
    with pytest.raises(PromptError, match=r"messages\[1\] \(assistant\): tool_calls\[0\]"):
        render([USER, renderable(said(None, "{}"))])
