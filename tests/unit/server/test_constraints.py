"""What a request to each API tells the model, and asks of the answer's tokens."""

from __future__ import annotations

import pytest

from gptoss_dist.errors import GptOssDistError
from gptoss_dist.harmony.vocab import load_encoding
from gptoss_dist.schema.generation import GenerationConf
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


@pytest.mark.parametrize("strict", [True, False, None])
def test_the_model_is_shown_the_schema_that_its_answer_follows(strict):
    described = {"name": "pair", "description": "Two.", "schema": {"type": "array", "minItems": 2}, "strict": strict}
    chat = {"response_format": {"type": "json_schema", "json_schema": described}}
    responses = {"text": {"format": {"type": "json_schema", **described}}}
    for prompt, constraint in (of_chat(**chat), of_responses(**responses)):
        told = "developer<|message|># Response Formats\n\n## pair\n\n// Two.\n" + '{"type":"array","minItems":2}<|end|>'
        assert told in load_encoding().decode(prompt)
        assert writes(prompt, constraint, "<|channel|>final<|message|>[1,2]<|return|>")
        assert not writes(prompt, constraint, "<|channel|>final<|message|>[1]<|return|>")


def test_of_any_object_the_model_is_told_nothing():
    for prompt, constraint in (
        of_chat(response_format={"type": "json_object"}),
        of_responses(text={"format": {"type": "json_object"}}),
    ):
        assert "developer" not in load_encoding().decode(prompt)
        assert writes(prompt, constraint, "<|channel|>final<|message|>{}<|return|>")
