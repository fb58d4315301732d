"""What the HTTP thread hands to the engine's thread: submissions and cancellations, in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gptoss_dist.engine.request import Request
from gptoss_dist.errors import GptOssDistError


@dataclass(frozen=True)
class Submission:
    """Requests that belong together. `answer` is called once, on the engine's thread: None, or why they are refused."""

    requests: tuple[Request, ...]
    answer: Callable[[GptOssDistError | None], None]


@dataclass(frozen=True)
class Cancellation:
    """A request that nobody waits for any more."""

    request_id: str


Letter = Submission | Cancellation


class Mailbox:
    """A queue between two threads whose reader can be woken without a letter."""

    def __init__(self) -> None:
        """Empty."""
        self._letters: deque[Letter] = deque()
        self._changed = threading.Condition()
        self._woken = False

    def put(self, letter: Letter) -> None:
        """Add a letter and wake the reader; from any thread."""
        with self._changed:
            self._letters.append(letter)
            self._changed.notify()

    def wake(self) -> None:
        """Let the reader look around; from any thread."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def take(self, wait_s: float) -> list[Letter]:
        """All letters; if there is none, wait up to `wait_s` seconds for one."""
        with self._changed:
            if wait_s > 0 and not self._letters and not self._woken:
                self._changed.wait(wait_s)
            self._woken = False
            letters = list(self._letters)
            self._letters.clear()
            return letters
