"""Items as the chat messages that harmony renders, so that both APIs give the same prompt for the same conversation.

What the assistant said in one turn becomes one chat message: its reasoning, its text, its calls. Messages without a
`phase`, which no response of this server is, stay messages of their own, as the client sent them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptoss_dist.harmony.renderable import renderable_function
from gptoss_dist.server.responses_input import Item

_BETWEEN = "\n"


@dataclass(frozen=True)
class Placed:
    """A chat message, and the index of the item that it begins with; None: of `instructions`."""

    message: dict[str, Any]
    place: int | None


@dataclass
class _Turn:
    """What the assistant said, as it is put together."""

    place: int
    reasoning: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    is_apart: bool = False
    """It holds a message without a phase: no other message belongs to it."""

    def placed(self) -> Placed:
        message: dict[str, Any] = {"role": "assistant", "content": _BETWEEN.join(self.texts) if self.texts else None}
        if self.reasoning:
            message["reasoning_content"] = _BETWEEN.join(self.reasoning)
        if self.calls:
            message["tool_calls"] = self.calls
        return Placed(message, self.place)


def messages_of(instructions: str | None, items: Sequence[Item]) -> list[Placed]:
    """The conversation. A call that was cut short, and that nobody answered, is left out."""
    out = [] if instructions is None else [Placed({"role": "developer", "content": instructions}, None)]
    answered = {item["call_id"] for item in items if item["type"] == "function_call_output"}
    turn: _Turn | None = None
    for index, item in enumerate(items):
        kind = item["type"]
        if kind == "function_call" and item["status"] == "incomplete" and item["call_id"] not in answered:
            continue
        if kind == "function_call_output" or item.get("role", "assistant") != "assistant":
            out += _closed(turn)
            turn = None
            out.append(Placed(_other(item), index))
            continue
        if turn is None or _is_apart(turn, item):
            out += _closed(turn)
            turn = _Turn(index)
        _say(turn, item)
    return [*out, *_closed(turn)]


def _closed(turn: _Turn | None) -> Iterator[Placed]:
    if turn is not None and (turn.reasoning or turn.texts or turn.calls):
        yield turn.placed()


def _is_apart(turn: _Turn, item: Item) -> bool:
    """Whether an item begins another message of the assistant."""
    if item["type"] == "function_call":
        return False
    return turn.is_apart or (item["type"] == "message" and "phase" not in item and bool(turn.texts))


def _say(turn: _Turn, item: Item) -> None:
    if item["type"] == "function_call":
        turn.calls.append(renderable_call(item))
        return
    text = "".join(part["text"] for part in item["content"])
    if item["type"] == "message":
        turn.texts.append(text)
        turn.is_apart = turn.is_apart or "phase" not in item
    elif text:
        turn.reasoning.append(text)


def _other(item: Item) -> dict[str, Any]:
    if item["type"] == "function_call_output":
        return {"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]}
    return {"role": item["role"], "content": item["content"]}


def renderable_call(item: Item) -> dict[str, Any]:
    """A call that harmony can render, whatever the model wrote."""
    function = renderable_function(item["name"], item["arguments"])
    return {"id": item["call_id"], "type": "function", "function": function}
