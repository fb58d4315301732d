"""The user's own Python functions, which the model may call. Nothing that they do ends the batch."""

from __future__ import annotations

import asyncio
import inspect
import json
import traceback
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from gptoss_dist.log import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True)
class Call:
    """What the model asks for; `arguments` as it wrote them: JSON, if it got it right."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Outcome:
    """What the model is told of a call."""

    call: Call
    output: str
    failed: bool = False


def failed(call: Call, why: str) -> Outcome:
    """The outcome of a call that gave nothing."""
    return Outcome(call, _clean(json.dumps({"error": why}, ensure_ascii=False)), failed=True)


class Functions:
    """Those of one module. `tools` describes them as a chat completion does."""

    def __init__(self, functions: dict[str, Callable[..., Any]], tools: list[dict[str, Any]]) -> None:
        """By name, and described in the same order."""
        self._functions, self.tools = functions, tools
        self._told: set[str] = set()
        self.counts: Counter[str] = Counter()
        """Calls by function."""
        self.failures: Counter[str] = Counter()

    def __contains__(self, name: str) -> bool:
        """Whether there is a function of this name."""
        return name in self._functions

    def summary(self) -> dict[str, dict[str, int]]:
        """How often each was called, and how often it failed."""
        return {name: {"calls": self.counts[name], "failed": self.failures[name]} for name in self._functions}

    def only(self, names: Collection[str]) -> Functions:
        """Those of these names; what happens to them is counted here."""
        part = Functions({name: one for name, one in self._functions.items() if name in names}, [])
        part._told, part.counts, part.failures = self._told, self.counts, self.failures
        return part

    def call(self, call: Call) -> Outcome:
        """Run it here and now. Nothing is raised: what goes wrong is told to the model."""
        function = self._functions.get(call.name)
        if function is None:
            return failed(call, f"there is no function {call.name!r} here.")
        outcome = self._call(call, function)
        self.counts[call.name] += 1
        self.failures[call.name] += outcome.failed
        return outcome

    def _call(self, call: Call, function: Callable[..., Any]) -> Outcome:
        try:
            given = json.loads(call.arguments or "{}")
            if not isinstance(given, dict):
                return failed(call, f"the arguments are {type(given).__name__}, and an object is needed.")
            bound = inspect.signature(function).bind(**given)
        except (ValueError, TypeError, RecursionError) as error:
            return failed(call, f"the arguments do not fit: {error}.")
        try:
            result = function(*bound.args, **bound.kwargs)
            if inspect.iscoroutine(result):
                result = asyncio.run(result)
            text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
        except BaseException as error:  # noqa: BLE001 - in a thread of its own, and whatever it is, the batch goes on
            self._tell(call.name, error)
            return failed(call, described(error))
        return Outcome(call, _clean(text))

    def _tell(self, name: str, error: BaseException) -> None:
        """The first failure of each function is said here too: it may be a defect of the function."""
        if name not in self._told:
            self._told.add(name)
            logger.warning(
                "job.functions: %s failed, as the model is told: %s%s", name, described(error), raised_at(error)
            )


def _clean(text: str) -> str:
    """Half characters, which no prompt can hold, become question marks."""
    return text.encode("utf-8", "replace").decode()


def described(error: BaseException) -> str:
    """An exception on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def raised_at(error: BaseException) -> str:
    """Where the user's code raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
