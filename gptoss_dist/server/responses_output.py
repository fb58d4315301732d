"""The output items of a response as they grow, and the events that tell of it; without sequence numbers.

reasoning        output_item.added, content_part.added, reasoning_text.delta…, reasoning_text.done, content_part.done,
                 output_item.done
message          the same with output_text; its `phase` is commentary or final_answer
function_call    output_item.added, function_call_arguments.delta…, function_call_arguments.done, output_item.done
"""

from __future__ import annotations

from typing import Any

from gptoss_dist.server.answer import Kind
from gptoss_dist.server.chat_shapes import logprobs_of
from gptoss_dist.server.responses_input import Item, new_id
from gptoss_dist.server.responses_reader import Closed, Opened, Step, Written
from gptoss_dist.server.shown_text import Chosen

StreamEvent = dict[str, Any]

_TEXT_EVENTS = {"reasoning_text": "response.reasoning_text", "output_text": "response.output_text"}
_ARGUMENTS = "response.function_call_arguments"
_PHASES = {"final": "final_answer", "commentary": "commentary", "analysis": "commentary"}


class OutputWriter:
    """Makes items and events of steps; at most one item is open."""

    def __init__(self, with_logprobs: bool) -> None:
        """`with_logprobs`: log probabilities were asked for."""
        self._with_logprobs = with_logprobs
        self._item: Item | None = None
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self.items: list[Item] = []
        """Those that are closed, and the open one as it began."""

    def take(self, step: Step) -> list[StreamEvent]:
        """What a step changes."""
        match step:
            case Opened():
                return self._open(step)
            case Written():
                return [self._write(step)]
            case Closed():
                return self.close(step.whole)

    def close(self, whole: bool = False) -> list[StreamEvent]:
        """End the open item, if there is one."""
        item, self._item = self._item, None
        if item is None:
            return []
        text = "".join(self._texts)
        if item["type"] == "function_call":
            item["arguments"] = text
            events = [self._at(item, f"{_ARGUMENTS}.done", arguments=text, name=item["name"])]
        else:
            part = self._part(item, text)
            item["content"] = [part]
            kind = _TEXT_EVENTS[part["type"]]
            logprobs = {"logprobs": list(self._logprobs)} if part["type"] == "output_text" else {}
            events = [
                self._at(item, f"{kind}.done", content_index=0, text=text, **logprobs),
                self._at(item, "response.content_part.done", content_index=0, part=part),
            ]
        item["status"] = "completed" if whole else "incomplete"
        return [*events, self._of_item("response.output_item.done", item)]

    def _open(self, step: Opened) -> list[StreamEvent]:
        self._texts, self._logprobs = [], []
        self._item = item = _new_item(step)
        self.items.append(item)
        events = [self._of_item("response.output_item.added", dict(item))]
        if step.kind is not Kind.call:
            part = self._part(item, "")
            events.append(self._at(item, "response.content_part.added", content_index=0, part=part))
        return events

    def _write(self, step: Written) -> StreamEvent:
        item = self._item
        assert item is not None, "an item is opened before it is written"
        self._texts.append(step.text)
        if item["type"] == "function_call":
            return self._at(item, f"{_ARGUMENTS}.delta", delta=step.text)
        if item["type"] == "reasoning":
            return self._at(item, "response.reasoning_text.delta", content_index=0, delta=step.text)
        logprobs = self._chosen(step.chosen)
        self._logprobs += logprobs
        return self._at(item, "response.output_text.delta", content_index=0, delta=step.text, logprobs=logprobs)

    def _chosen(self, chosen: tuple[Chosen, ...]) -> list[dict[str, Any]]:
        shaped = logprobs_of(chosen) if self._with_logprobs else None
        return list(shaped["content"]) if shaped else []

    def _part(self, item: Item, text: str) -> dict[str, Any]:
        if item["type"] == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "annotations": [], "logprobs": list(self._logprobs), "text": text}

    def _at(self, item: Item, kind: str, **fields: Any) -> StreamEvent:
        return {"type": kind, "item_id": item["id"], "output_index": len(self.items) - 1, **fields}

    def _of_item(self, kind: str, item: Item) -> StreamEvent:
        return {"type": kind, "output_index": len(self.items) - 1, "item": item}


def _new_item(step: Opened) -> Item:
    """An item as it begins."""
    if step.kind is Kind.call:
        head: Item = {"id": new_id("function_call"), "type": "function_call", "status": "in_progress"}
        return {**head, "call_id": step.call_id, "name": step.name, "arguments": ""}
    if step.kind is Kind.reasoning:
        return {
            "id": new_id("reasoning"),
            "type": "reasoning",
            "status": "in_progress",
            "summary": [],
            "content": [],
        }
    return {
        "id": new_id("message"),
        "type": "message",
        "status": "in_progress",
        "role": "assistant",
        "phase": _PHASES[step.channel],
        "content": [],
    }
