"""Calls of the user's functions under way: each in a thread of its own, so that the engine never waits for one."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from gptoss_dist.batch.functions import Call, Functions, Outcome, failed


@dataclass(frozen=True)
class CallLimits:
    """How far the model may go: `rounds` of calls for one record, `seconds` for one call."""

    rounds: int
    seconds: float


class Calls:
    """The calls of one turn of the model, begun together."""

    def __init__(self, functions: Functions, calls: Sequence[Call], seconds: float, changed: threading.Event) -> None:
        """`changed` is set whenever one ends. After `seconds` no more is waited for."""
        self._functions, self._calls, self._seconds, self._changed = functions, tuple(calls), seconds, changed
        self._deadline = time.monotonic() + seconds
        self._outcomes: dict[int, Outcome] = {}

    def start(self) -> None:
        """Run them, side by side."""
        for place, call in enumerate(self._calls):
            threading.Thread(target=self._run, args=(place, call), name=f"gptoss-{call.name}", daemon=True).start()

    @property
    def are_over(self) -> bool:
        """Whether every call has its outcome, or its time is up."""
        return len(self._outcomes) == len(self._calls) or time.monotonic() >= self._deadline

    def outcomes(self) -> list[Outcome]:
        """In the order of the calls. A thread cannot be ended: a function that takes too long goes on, unheard."""
        known = dict(self._outcomes)
        late = f"it took longer than {self._seconds:g} s and was given up."
        return [known.get(place) or failed(call, late) for place, call in enumerate(self._calls)]

    def _run(self, place: int, call: Call) -> None:
        self._outcomes[place] = self._functions.call(call)
        self._changed.set()
