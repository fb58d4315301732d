"""What a request to each API asks of the answer's tokens, as far as an engine can tell."""

from __future__ import annotations

import pytest

from gptoss_dist.errors import GptOssDistError
from gptoss_dist.harmony.vocab import load_encoding
from gptoss_dist.schema import GenerationConf
from gptoss_dist.server import chat_request, responses_prompt
from gptoss_dist.server.chat_request import ChatRequest
from gptoss_dist.server.constraints import constraint_of
from gptoss_dist.server.responses_request import ResponseRequest
from gptoss_dist.server.served_model import ServedModel

MODEL = ServedModel("m", ("m",), False, 8192, 201_088, 0, "fp", GenerationConf(), None)
FUNCTION = {"name": "look_up", "parameters": {"type": "object", "properties": {"word": {"type": "string"}}}}


def of_chat(**fields):
    """(prompt, constraint) of a request to /v1/chat/completions."""
    body = ChatRequest(messages=[{"role": "user", "content": "hi"}], **fields)
    return chat_request.prompt_of(body, MODEL), constraint_of(body)


def of_responses(**fields):
    """(prompt, constraint) of a request to /v1/responses."""
    prompt = responses_prompt.prompt_of(ResponseRequest(input="hi", **fields), MODEL, [], lambda _: None)
    return prompt.tokens, prompt.constraint


def writes(prompt, constraint, text) -> bool:
    """Whether an answer may begin with `text`."""
    state = constraint.start(prompt)
    try:
        for token in load_encoding().encode(text, allowed_special="all"):
            state.accept(token)
    except GptOssDistError:
        return False
    return True


@pytest.mark.parametrize(
    ("of", "tool"),
    [(of_chat, {"type": "function", "function": FUNCTION}), (of_responses, {"type": "function", **FUNCTION})],
)
def test_tool_choice_none_makes_a_call_impossible(of, tool):
    prompt, constraint = of(tools=[tool], tool_choice="none")
    assert "look_up" not in load_encoding().decode(prompt)
    assert not writes(prompt, constraint, "<|channel|>commentary to=functions.look_up")
    assert not writes(prompt, constraint, " to=functions.look_up")
    assert writes(prompt, constraint, "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final")
