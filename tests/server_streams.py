"""What every stream of Chat and Completions must be, checked event by event."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

CONTROL = ("<|", "|>")


@dataclass
class Streamed:
    """One choice, put together from its deltas."""

    content: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    role: str | None = None


def events_of(body: str) -> list[dict[str, Any]]:
    """The JSON of every event; comments are left out. The stream must end in [DONE], and hold it once."""
    blocks = [block for block in body.split("\n\n") if block and not block.startswith(":")]
    assert body.endswith("\n\n")
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks), blocks
    assert [block for block in blocks if block == "data: [DONE]"] == blocks[-1:]
    return [json.loads(block[6:]) for block in blocks[:-1]]


def check_chat_stream(
    events: list[dict[str, Any]], choices: int = 1, usage: bool = False, logprobs: bool = False
) -> tuple[list[Streamed], dict[str, Any] | None]:
    """The choices of a chat stream, and its usage; every rule of the format is asserted on the way."""
    for event in events:
        ChatCompletionChunk.model_validate(event, strict=True)
        assert not any(sign in json.dumps(event["choices"]) for sign in CONTROL)
    heads = {(one["id"], one["object"], one["created"], one["model"], one["system_fingerprint"]) for one in events}
    assert len(heads) == 1, heads
    last = events[-1]["usage"] if usage else None
    if usage:
        assert events[-1]["choices"] == []
        assert all(one["usage"] is None for one in events[:-1])
        events = events[:-1]
    else:
        assert not any("usage" in one for one in events)
    out = [Streamed() for _ in range(choices)]
    for event in events:
        (choice,) = event["choices"]
        _take(out[choice["index"]], choice, logprobs)
    for one in out:
        assert one.role == "assistant"
        assert one.finish_reason in ("stop", "length", "tool_calls")
        assert (one.finish_reason != "tool_calls") or one.calls
    if last is not None:
        _check_usage(last)
    return out, last


def _take(one: Streamed, choice: dict[str, Any], logprobs: bool) -> None:
    assert one.finish_reason is None, "nothing comes after the finish_reason"
    delta = choice["delta"]
    if one.role is None:
        assert delta["role"] == "assistant", "the first delta says who speaks"
        one.role = delta["role"]
    else:
        assert "role" not in delta
    one.content += delta.get("content") or ""
    assert delta.get("reasoning") == delta.get("reasoning_content")
    one.reasoning += delta.get("reasoning") or ""
    for call in delta.get("tool_calls", []):
        _take_call(one, call)
    if choice["logprobs"] is not None:
        assert logprobs, "log probabilities come only if they were asked for"
        one.tokens += choice["logprobs"]["content"]
    one.finish_reason = choice["finish_reason"]


def _take_call(one: Streamed, call: dict[str, Any]) -> None:
    if call["index"] == len(one.calls):
        assert call["id"].startswith("call_")
        assert call["type"] == "function"
        assert call["function"]["arguments"] == ""
        one.calls.append({"id": call["id"], "name": call["function"]["name"], "arguments": ""})
        return
    assert call["index"] == len(one.calls) - 1, "calls come one after the other"
    assert "id" not in call
    one.calls[-1]["arguments"] += call["function"]["arguments"]


def check_chat(body: dict[str, Any]) -> list[Streamed]:
    """The choices of a whole answer, in the form of a streamed one."""
    ChatCompletion.model_validate(body, strict=True)
    assert not any(sign in json.dumps(body) for sign in CONTROL)
    _check_usage(body["usage"])
    out = []
    for index, choice in enumerate(body["choices"]):
        assert choice["index"] == index
        message = choice["message"]
        calls = [{"id": one["id"], **one["function"]} for one in message.get("tool_calls", [])]
        assert message["content"] is not None or calls
        assert message.get("reasoning") == message.get("reasoning_content")
        tokens = choice["logprobs"]["content"] if choice["logprobs"] else []
        reasoning = message.get("reasoning") or ""
        finish = choice["finish_reason"]
        out.append(Streamed(message["content"] or "", reasoning, calls, tokens, finish, message["role"]))
    return out


def check_completion_stream(events: list[dict[str, Any]], choices: int = 1) -> list[Streamed]:
    """The choices of a stream of /v1/completions."""
    out = [Streamed(role="") for _ in range(choices)]
    for event in events:
        Completion.model_validate({**event, "choices": [_judged(one) for one in event["choices"]]}, strict=True)
        for choice in event["choices"]:
            one = out[choice["index"]]
            assert one.finish_reason is None
            one.content += choice["text"]
            one.finish_reason = choice["finish_reason"]
    assert all(one.finish_reason in ("stop", "length") for one in out)
    return out


def _judged(choice: dict[str, Any]) -> dict[str, Any]:
    """The package's type knows no open choice, which the API itself sends in streams."""
    return {**choice, "finish_reason": choice["finish_reason"] or "stop"}


def _check_usage(usage: dict[str, Any]) -> None:
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens"] > 0
    assert 0 <= usage["completion_tokens_details"]["reasoning_tokens"] <= usage["completion_tokens"]
    assert 0 <= usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]
