"""Which replica takes a request.

The replica with the least work takes it: the tokens that its requests are likely to have to compute still, less those
of the new prompt that it has computed for another one lately. A replica that is idle and knows the prompt wins; one
that knows it and is busy does not take all requests that begin alike. What is known is remembered here by the keys of
the prompts' pages; the replica may have evicted them since, which costs time and changes no token.

How long an answer will be is guessed from those that ended lately. The most that a request allows says little: clients
that name no limit get the whole context, beside which no prefix would ever count.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from gptoss_dist.engine.pages import key_of
from gptoss_dist.engine.request import Event, Finish, Request

_LIKELY = 256.0
"""Tokens of an answer, before any has ended."""
_RECENT = 16
"""About so many answers make the guess."""


@dataclass
class _Placed:
    """A request under way."""

    replica: int
    prompt: int
    """Tokens of its prompt still to compute; 0 after its first event."""
    output: int
    """Tokens it may still generate."""
    likely: int
    """Tokens it is likely to generate still, whatever it has generated: most answers do not say how far they are."""
    said: int = 0
    """Tokens it has generated."""

    @property
    def work(self) -> int:
        """Tokens likely to be computed still."""
        return self.prompt + min(self.output, self.likely)


class Placement:
    """Places requests on `replicas`, and follows their work by the events."""

    def __init__(self, replicas: int, page_size: int | None, remembered: int = 1 << 16) -> None:
        """`page_size`: of the caches that keep prefixes, None if there are none; of `remembered` pages the place."""
        self._page_size, self._remembered = page_size, remembered
        self._work = [0] * replicas
        self._likely = _LIKELY
        self._placed: dict[str, _Placed] = {}
        self._holders: OrderedDict[bytes, int] = OrderedDict()

    def __contains__(self, request_id: str) -> bool:
        """Whether the request is unfinished."""
        return request_id in self._placed

    def __len__(self) -> int:
        """Unfinished requests."""
        return len(self._placed)

    @property
    def work(self) -> tuple[int, ...]:
        """Tokens that each replica is likely to have to compute still."""
        return tuple(self._work)

    def replica(self, request_id: str) -> int | None:
        """Where an unfinished request is; None for any other."""
        placed = self._placed.get(request_id)
        return None if placed is None else placed.replica

    def place(self, request: Request) -> int:
        """The replica of a new request."""
        keys = self._keys(request) if len(self._work) > 1 and self._page_size else []
        known = self._known(keys)
        replica = min(range(len(self._work)), key=lambda one: (self._work[one] - known[one], one))
        prompt = len(request.prompt) - known[replica]
        self._placed[request.id] = placed = _Placed(replica, prompt, request.sampling.max_tokens, round(self._likely))
        self._work[replica] += placed.work
        self._remember(keys, replica)
        return replica

    def follow(self, event: Event) -> None:
        """Take in what happened to a request."""
        placed = self._placed.get(event.request_id)
        if placed is None:
            return
        before = placed.work
        if event.tokens:
            placed.prompt = 0
            placed.output -= len(event.tokens)
            placed.said += len(event.tokens)
        if event.finish is None:
            self._work[placed.replica] += placed.work - before
            return
        del self._placed[event.request_id]
        self._work[placed.replica] -= before
        if event.finish is not Finish.cancelled:  # a client that left says nothing of how long answers are
            self._likely += (placed.said - self._likely) / _RECENT

    def _keys(self, request: Request) -> list[bytes]:
        size, key, keys = self._page_size or 1, b"", []
        for start in range(0, len(request.prompt) - size + 1, size):
            key = key_of(key, request.prompt[start : start + size])
            keys.append(key)
        return keys

    def _known(self, keys: list[bytes]) -> list[int]:
        """Tokens from the start of the prompt that each replica has computed."""
        known, holding = [0] * len(self._work), (1 << len(self._work)) - 1
        for key in keys:
            holding &= self._holders.get(key, 0)
            if not holding:
                break
            for replica in range(len(known)):
                known[replica] += (self._page_size or 0) * (holding >> replica & 1)
        return known

    def _remember(self, keys: list[bytes], replica: int) -> None:
        for key in reversed(keys):  # the beginning of a prefix is needed more often than its end: it is forgotten later
            self._holders[key] = self._holders.get(key, 0) | 1 << replica
            self._holders.move_to_end(key)
        while len(self._holders) > self._remembered:
            self._holders.popitem(last=False)
