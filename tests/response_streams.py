"""What every response, and every stream of one, must be: checked with the openai package's types, event by event."""

from __future__ import annotations

import json
import typing
from typing import Any

from openai.types.responses import Response, ResponseStreamEvent

CONTROL = ("<|", "|>")
TERMINAL = ("response.completed", "response.incomplete", "response.failed", "error")
_STATUS_OF = {"response.completed": "completed", "response.incomplete": "incomplete", "response.failed": "failed"}
_EVENT_TYPES = {
    one.model_fields["type"].annotation.__args__[0]: one
    for one in typing.get_args(typing.get_args(ResponseStreamEvent)[0])
}


def response_events(body: str) -> list[dict[str, Any]]:
    """The JSON of every event; each has a line that names it and a line of data, and nothing else."""
    assert body.endswith("\n\n")
    events = []
    for block in body.split("\n\n")[:-1]:
        if block.startswith(":"):
            continue
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def check_response(response: dict[str, Any]) -> Response:
    """A whole response."""
    checked = Response.model_validate(response, strict=True)
    assert not any(sign in json.dumps(response["output"]) for sign in CONTROL)
    assert response["object"] == "response"
    ids = [item["id"] for item in response["output"]]
    assert len(set(ids)) == len(ids)
    ended = response["status"] not in ("queued", "in_progress")
    assert (response["usage"] is not None) == ended
    if ended:
        check_usage(response["usage"])
        assert all(item["status"] in ("completed", "incomplete") for item in response["output"])
    if response["status"] == "completed":
        assert all(item["status"] == "completed" for item in response["output"])
    assert (response["error"] is not None) == (response["status"] == "failed")
    assert (response["incomplete_details"] is not None) == (response["status"] == "incomplete")
    assert (response["completed_at"] is not None) == (response["status"] == "completed")
    return checked


def check_usage(usage: dict[str, Any]) -> None:
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_tokens"] > 0
    assert 0 <= usage["output_tokens_details"]["reasoning_tokens"] <= usage["output_tokens"]
    assert 0 <= usage["input_tokens_details"]["cached_tokens"] <= usage["input_tokens"]


def check_response_stream(events: list[dict[str, Any]], ended: bool = True) -> dict[str, Any]:
    """The response at the end of a stream (None's place is taken by what was built, where it ended in an error).

    Every rule of the format is asserted on the way; with `ended=False` the stream may break off anywhere.
    """
    for event in events:
        _EVENT_TYPES[event["type"]].model_validate(event, strict=True)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    rest = _check_beginning(events)
    checker = _Items()
    for event in rest[:-1] if ended else rest:
        checker.take(event)
    if not ended:
        return {"output": checker.done}
    last = rest[-1]
    assert last["type"] in TERMINAL
    assert checker.item is None, "every item is closed before the response ends"
    if last["type"] == "error":
        assert last["message"]
        return {"output": checker.done, "id": events[0]["response"]["id"], "status": "cancelled"}
    response = last["response"]
    check_response(response)
    assert response["status"] == _STATUS_OF[last["type"]]
    assert response["output"] == checker.done
    assert response["id"] == events[0]["response"]["id"]
    return response


def _check_beginning(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Created, perhaps queued, in progress; the events after these."""
    kinds = [event["type"] for event in events]
    background = events[0]["response"]["background"]
    head = ["response.created", *(["response.queued"] if background else []), "response.in_progress"]
    if background and "response.in_progress" not in kinds:
        head = head[:2]  # ended before it began
    assert kinds[: len(head)] == head
    for event in events[: len(head)]:
        response = event["response"]
        check_response(response)
        started = event["type"] == "response.in_progress" or not background
        assert response["status"] == ("in_progress" if started else "queued")
        assert response["output"] == []
        assert response["id"] == events[0]["response"]["id"]
    return events[len(head) :]


class _Items:
    """The items of a stream, put together from its deltas; at most one is open."""

    def __init__(self) -> None:
        self.done: list[dict[str, Any]] = []
        self.item: dict[str, Any] | None = None
        self._part: dict[str, Any] | None = None
        self._text = ""
        self._text_done = self._part_done = False
        self._logprobs: list[Any] = []

    def take(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        assert kind not in TERMINAL, "nothing comes after the end"
        assert event["output_index"] == len(self.done)
        if "item_id" in event:
            assert self.item is not None, f"{kind} outside of an item"
            assert event["item_id"] == self.item["id"]
        if "content_index" in event:
            assert event["content_index"] == 0, "an item of gpt-oss has one part"
        name = kind.removeprefix("response.")
        if name == "output_item.added":
            self._added(event["item"])
        elif name == "output_item.done":
            self._item_done(event["item"])
        elif name == "content_part.added":
            assert self.item["type"] in ("message", "reasoning")
            assert self._part is None, "a part is opened once"
            self._part = event["part"]
            assert self._part["text"] == ""
        elif name == "content_part.done":
            assert self._text_done
            assert not self._part_done
            self._part_done = True
            assert event["part"] == {**self._part, "text": self._text, **self._with_logprobs()}
            self._part = event["part"]
        else:
            self._grow(name, event)

    def _grow(self, name: str, event: dict[str, Any]) -> None:
        stem, _, end = name.partition(".")
        of_call = self.item["type"] == "function_call"
        assert stem == {"message": "output_text", "reasoning": "reasoning_text"}.get(
            self.item["type"], "function_call_arguments"
        )
        assert of_call or self._part is not None, "text comes in a part"
        assert not self._text_done
        if end == "delta":
            self._text += event["delta"]
            self._logprobs += event.get("logprobs", [])
            return
        assert end == "done"
        assert event["arguments" if of_call else "text"] == self._text
        if stem == "output_text":
            assert event["logprobs"] == self._logprobs
        self._text_done = True

    def _added(self, item: dict[str, Any]) -> None:
        assert self.item is None, "one item is open at a time"
        assert item["status"] == "in_progress"
        assert item.get("content", []) == []
        assert item.get("arguments", "") == ""
        self.item, self._part, self._text, self._logprobs = item, None, "", []
        self._text_done, self._part_done = False, item["type"] == "function_call"

    def _item_done(self, item: dict[str, Any]) -> None:
        assert self.item is not None
        assert self._text_done, "the text is done before its item"
        assert self._part_done, "the part is done before its item"
        assert item["status"] in ("completed", "incomplete")
        grown = {"arguments": self._text} if item["type"] == "function_call" else {"content": [self._part]}
        assert item == {**self.item, "status": item["status"], **grown}
        self.done.append(item)
        self.item = None

    def _with_logprobs(self) -> dict[str, Any]:
        return {"logprobs": self._logprobs} if self.item["type"] == "message" else {}
