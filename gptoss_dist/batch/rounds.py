"""A record whose answer may call the user's functions: rounds of a turn of the model, its calls, their results.

A turn that calls a tool of the record's own, for which there is no function, is the answer: whoever asked runs it.
A call of something that was not offered is told to the model as a failure. `tool_choice` that demands a call is over
with the first round. `max_tokens` holds for each turn. A record that was cut off is begun again by the next start, and
its functions are called again.
"""

from __future__ import annotations

import threading
from typing import Any

from gptoss_dist.batch.answers import TRANSPORT, Answer
from gptoss_dist.batch.calls import CallLimits, Calls
from gptoss_dist.batch.dialogue import ChatDialogue, Dialogue, ResponseDialogue
from gptoss_dist.batch.functions import Functions
from gptoss_dist.batch.records import RESPONSES, Record
from gptoss_dist.engine.request import Event
from gptoss_dist.server.api_error import ApiError
from gptoss_dist.server.served_model import ServedModel


def begin_rounds(record: Record, model: ServedModel, functions: Functions, limits: CallLimits) -> Answer:
    """Requests for a record, as `answers.begin` makes them. Raises ApiError for what is refused."""
    kind = ResponseDialogue if record.url == RESPONSES else ChatDialogue
    fields = {name: value for name, value in record.body.items() if name not in TRANSPORT}
    return Rounds(kind(fields, functions), model, functions, limits)


class Rounds(Answer):
    """The turns of one record; `requests` are those of the turn under way."""

    def __init__(self, dialogue: Dialogue, model: ServedModel, functions: Functions, limits: CallLimits) -> None:
        """Raises ApiError."""
        self._dialogue, self._model, self._functions, self._limits = dialogue, model, functions, limits
        self._bodies: list[dict[str, Any]] = []
        self._begin()

    def take(self, event: Event) -> bool:
        """See `Answer.take`."""
        return self._answer.take(event)

    @property
    def is_whole(self) -> bool:
        """See `Answer.is_whole`."""
        return self._answer.is_whole

    def call(self, changed: threading.Event) -> Calls | None:
        """See `Answer.call`."""
        body = self._answer.body()
        self._bodies.append(body)
        calls = self._dialogue.calls(body)
        offered = self._answer.offered
        if not calls or any(one.name in offered and one.name not in self._functions for one in calls):
            return None
        if len(self._bodies) > self._limits.rounds:
            raise ApiError(
                400,
                f"the model calls {calls[0].name} after job.rounds={self._limits.rounds} rounds of calls. Raise "
                "job.rounds, or say in the prompt when to answer.",
                code="too_many_rounds",
            )
        started = Calls(self._functions.only(offered), calls, self._limits.seconds, changed)
        started.start()
        return started

    def go_on(self, calls: Calls) -> None:
        """See `Answer.go_on`."""
        self._dialogue.extend(self._bodies[-1], calls.outcomes())
        self._begin()

    def body(self) -> dict[str, Any]:
        """See `Answer.body`; `call` has been asked before."""
        return self._dialogue.whole(self._bodies)

    def _begin(self) -> None:
        self._answer = self._dialogue.begin(self._model)
        self.requests, self.offered = self._answer.requests, self._answer.offered
