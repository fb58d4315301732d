"""The interface behind which every engine stands: jobs, the server and the library know only this.

An engine lives on all ranks. Rank 0 submits and cancels; `step` is collective, and what it returns is equal on every
rank, so every rank knows when there is nothing left to do without being told:

    rank 0:   submit(a)  submit(b)   step → events   step → events   …   has_work is False
    rank 1:                          step → events   step → events   …   has_work is False

Where requests come at any time, the ranks above 0 `follow`, and rank 0 steps while there is work and now and then while
there is none: a step without work is a broadcast, and tells that rank 0 is alive.

    rank 0:   submit(a)  step …  step (idle, once a second)  submit(b)  step …  release()  step
    rank 1:   follow() ─────────────────────────────────────────────────────────────────────── returns
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

from gptoss_dist.engine.request import Event, Request
from gptoss_dist.engine.stats import EngineStats, ReplicaStats


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
        """End a request at the next step with `Finish.cancelled`; unknown or finished ids are ignored."""

    @abstractmethod
    def step(self) -> list[Event]:
        """Take in what rank 0 queued, and continue the running requests.

        Collective. Returns the same events on every rank. They may be those of an earlier step: an engine may launch
        the next one before it looks at the tokens of the last. Raises LogitsError, on every rank, if the model's logits
        are not numbers.
        """

    @property
    @abstractmethod
    def has_work(self) -> bool:
        """Whether a request that has reached the ranks is unfinished; equal on every rank after a step."""

    @property
    @abstractmethod
    def context(self) -> int:
        """Longest prompt and output together, in tokens."""

    def release(self) -> None:  # noqa: B027 - not abstract: an engine of a single process has nobody to release
        """On rank 0: the next step is the last for the ranks that `follow`, whatever work is left then."""

    def follow(self) -> None:  # noqa: B027
        """On ranks above 0: step until rank 0 has called `release`, and stepped once more. Collective."""

    def close(self) -> None:  # noqa: B027
        """Give back what has to go before the process group does; no step may follow. Not collective."""

    def stats(self) -> EngineStats:
        """How the replicas were doing after the last step, equal on every rank; zeros where nothing is counted."""
        return EngineStats((ReplicaStats(),), 0)

    def stream(self, requests: Iterable[Request]) -> Iterator[Event]:
        """Submit `requests` (read on rank 0 only) and step until all are finished. Collective."""
        for request in requests:
            self.submit(request)
        yield from self.step()
        while self.has_work:
            yield from self.step()
