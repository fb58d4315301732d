"""A record's conversation as it grows by calls and their results, in the words of the record's own API."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gptoss_dist.batch.answers import Answer, ChatAnswer, ResponseAnswer
from gptoss_dist.batch.functions import Call, Functions, Outcome
from gptoss_dist.server.api_error import unsupported
from gptoss_dist.server.responses_input import new_id
from gptoss_dist.server.responses_messages import renderable_call
from gptoss_dist.server.served_model import ServedModel

Body = dict[str, Any]


class Dialogue(ABC):
    """`begin`, then `extend` and `begin` again for each turn of the model, then `whole`."""

    def __init__(self, fields: Body, functions: Functions) -> None:
        """`fields` are the record's; one that brings no tools gets all functions."""
        self._fields = dict(fields)
        if self._fields.get("tools") is None and self._fields.get("tool_choice") != "none":
            self._fields["tools"] = self._tools(functions)

    @abstractmethod
    def begin(self, model: ServedModel) -> Answer:
        """The model's next turn. Raises ApiError."""

    @abstractmethod
    def calls(self, body: Body) -> list[Call]:
        """The calls that a turn has ended with."""

    @abstractmethod
    def extend(self, body: Body, outcomes: Sequence[Outcome]) -> None:
        """Go on after the turn and what its calls gave."""

    @abstractmethod
    def whole(self, bodies: Sequence[Body]) -> Body:
        """The answer of all turns: the last one, with what led to it and the tokens of all."""

    @abstractmethod
    def _tools(self, functions: Functions) -> list[Body]:
        """The functions as the API describes them."""

    def _call_no_more(self) -> None:
        """A call that was demanded has been made: from now on the model may answer."""
        choice = self._fields.get("tool_choice")
        if choice == "required" or isinstance(choice, Mapping):
            self._fields["tool_choice"] = "auto"


class ChatDialogue(Dialogue):
    """Messages. The answer's `messages` are those between the prompt and the last one: calls and results."""

    def __init__(self, fields: Body, functions: Functions) -> None:
        """See `Dialogue`."""
        super().__init__(fields, functions)
        self._between: list[Body] = []

    def begin(self, model: ServedModel) -> Answer:
        """See `Dialogue.begin`."""
        answer = ChatAnswer(self._fields, model)
        if len(answer.requests) > 1:
            raise unsupported("n", "n is 1 where functions are run (job.functions): each choice would call its own.")
        return answer

    def calls(self, body: Body) -> list[Call]:
        """See `Dialogue.calls`."""
        (choice,) = body["choices"]
        called = choice["message"].get("tool_calls", []) if choice["finish_reason"] == "tool_calls" else []
        return [Call(one["id"], one["function"]["name"], one["function"]["arguments"]) for one in called]

    def extend(self, body: Body, outcomes: Sequence[Outcome]) -> None:
        """See `Dialogue.extend`."""
        said = {name: value for name, value in body["choices"][0]["message"].items() if value is not None}
        results = [{"role": "tool", "tool_call_id": one.call.id, "content": one.output} for one in outcomes]
        self._between += [said, *results]
        rendered = {**said, "tool_calls": [renderable_call(_item(one.call)) for one in outcomes]}
        self._fields["messages"] = [*self._fields["messages"], rendered, *results]
        self._call_no_more()

    def whole(self, bodies: Sequence[Body]) -> Body:
        """See `Dialogue.whole`."""
        *_, last = bodies
        between = {"messages": self._between} if self._between else {}
        return {**last, **between, "usage": _sum([one["usage"] for one in bodies])}

    def _tools(self, functions: Functions) -> list[Body]:
        return functions.tools


class ResponseDialogue(Dialogue):
    """Items: calls and results are among the answer's `output`."""

    def __init__(self, fields: Body, functions: Functions) -> None:
        """See `Dialogue`."""
        super().__init__(fields, functions)
        self._results: list[list[Body]] = []

    def begin(self, model: ServedModel) -> Answer:
        """See `Dialogue.begin`."""
        return ResponseAnswer(self._fields, model)

    def calls(self, body: Body) -> list[Call]:
        """See `Dialogue.calls`."""
        called = [one for one in body["output"] if one["type"] == "function_call" and body["status"] == "completed"]
        return [Call(one["call_id"], one["name"], one["arguments"]) for one in called]

    def extend(self, body: Body, outcomes: Sequence[Outcome]) -> None:
        """See `Dialogue.extend`."""
        given = self._fields["input"]
        before = [{"role": "user", "content": given}] if isinstance(given, str) else given
        kind = "function_call_output"
        results = [
            {"id": new_id(kind), "type": kind, "status": "completed", "call_id": one.call.id, "output": one.output}
            for one in outcomes
        ]
        self._results.append(results)
        self._fields["input"] = [*before, *body["output"], *results]
        self._call_no_more()

    def whole(self, bodies: Sequence[Body]) -> Body:
        """See `Dialogue.whole`."""
        first, *_, last = [bodies[0], *bodies]
        results = [*self._results, *([] for _ in range(len(bodies) - len(self._results)))]
        output = [item for body, more in zip(bodies, results, strict=True) for item in [*body["output"], *more]]
        usage = _sum([one["usage"] for one in bodies])
        return {**last, "output": output, "tool_choice": first["tool_choice"], "usage": usage}

    def _tools(self, functions: Functions) -> list[Body]:
        return [{"type": "function", **tool["function"]} for tool in functions.tools]


def _item(call: Call) -> Body:
    return {"call_id": call.id, "name": call.name, "arguments": call.arguments}


def _sum(usages: Collection[Any]) -> Any:
    """Numbers of the same place added up."""
    first, *_ = usages
    if isinstance(first, dict):
        return {name: _sum([one[name] for one in usages]) for name in first}
    return sum(usages)
