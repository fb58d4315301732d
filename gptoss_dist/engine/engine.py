"""The interface behind which every engine stands: jobs, the server and the library know only this.

An engine lives on all ranks. Rank 0 submits and cancels, and a step of it gives the events of all requests, wherever
they are computed. The ranks above 0 follow until rank 0 releases them. They see no events.

    rank 0:    submit(a)  step → events  submit(b)  step → events  …  has_work is False  release()  step
    others:    follow() ────────────────────────────────────────────────────────────────────────── returns

Only ranks that share a request's work step together. A step of rank 0 waits for no other replica, but for one: the step
after `release`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator

from gptoss_dist.engine.request import Event, Request
from gptoss_dist.engine.stats import EngineStats, ReplicaStats


def nothing() -> None:
    """After a step."""


class Engine(ABC):
    """Continues prompts, token by token, for many requests at once."""

    @abstractmethod
    def submit(self, request: Request) -> None:
        """Queue a request for the next step; on ranks above 0 this does nothing.

        Raises DoesNotFitError, on rank 0 and for this request alone, if it could never be finished; ConfigError if its
        id is in use.
        """

    @abstractmethod
    def cancel(self, request_id: str) -> None:
        """End a request soon with `Finish.cancelled`; unknown or finished ids, and ranks above 0, are ignored."""

    @abstractmethod
    def step(self) -> list[Event]:
        """On rank 0: pass on what was queued, continue the requests of its own replica, and take in what others report.

        Returns the events that there are now, which may be none. They may be those of an earlier step: an engine may
        launch the next one before it looks at the tokens of the last. Where only other replicas have work, it waits for
        them a moment. Without any work it is cheap, and tells whether the ranks beside it are alive. Raises
        LogitsError, and lets every rank raise it, if the model's logits are not numbers.
        """

    @property
    @abstractmethod
    def has_work(self) -> bool:
        """On rank 0: whether a request is unfinished."""

    @property
    @abstractmethod
    def context(self) -> int:
        """Longest prompt and output together, in tokens."""

    @abstractmethod
    def at_once(self, request: Request) -> int:
        """How many requests like this one a replica has room for until all are finished."""

    def release(self) -> None:  # noqa: B027 - not abstract: an engine of a single process has nobody to release
        """On rank 0: the next step is the last for the ranks that `follow`, whatever work is left then.

        It returns once every replica has made it, so that afterwards all ranks can do something else together.
        """

    def follow(self, after_step: Callable[[], None] = nothing) -> None:  # noqa: B027
        """On ranks above 0: compute what rank 0 asks for, until it has called `release`, and stepped once more.

        `after_step` is called after each step of this rank.
        """

    def close(self) -> None:  # noqa: B027
        """Give back what has to go before the process group does; no step may follow. Not collective."""

    def stats(self) -> EngineStats:
        """On rank 0: how the replicas were doing when they last told; zeros where nothing is counted."""
        return EngineStats((ReplicaStats(),), 0)

    def drain(self) -> Iterator[Event]:
        """On rank 0: step until all requests are finished."""
        while self.has_work:
            yield from self.step()

    def stream(self, requests: Iterable[Request]) -> Iterator[Event]:
        """Submit `requests`, step until all are finished, and release the other ranks. Collective.

        On ranks above 0, which need not know the requests, it follows and yields nothing.
        """
        for request in requests:
            self.submit(request)
        yield from self.drain()
        self.release()
        self.step()
