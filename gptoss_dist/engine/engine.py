"""The interface behind which every engine stands: jobs, the server and the library know only this.

An engine lives on all ranks. Rank 0 submits and cancels; `step` is collective, and what it returns is equal on every
rank, so every rank knows when there is nothing left to do without being told:

    rank 0:   submit(a)  submit(b)   step → events   step → events   …   has_work is False
    rank 1:                          step → events   step → events   …   has_work is False
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

from gptoss_dist.engine.request import Event, Request


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
        """Take in what rank 0 queued, and continue the running requests by at least one token between them.

        Collective. Returns the same events on every rank.
        """

    @property
    @abstractmethod
    def has_work(self) -> bool:
        """Whether a request that has reached the ranks is unfinished; equal on every rank after a step."""

    @property
    @abstractmethod
    def context(self) -> int:
        """Longest prompt and output together, in tokens."""

    def stream(self, requests: Iterable[Request]) -> Iterator[Event]:
        """Submit `requests` (read on rank 0 only) and step until all are finished. Collective."""
        for request in requests:
            self.submit(request)
        yield from self.step()
        while self.has_work:
            yield from self.step()
