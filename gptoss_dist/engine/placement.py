"""Which replica takes a request. Every rank makes the same calls and finds the same answer.

The replica with the least work takes it: the tokens that its requests may still have to compute, less those of the new
prompt that it has computed for another one lately. A replica that is idle and knows the prompt wins; one that knows it
and is busy does not take all requests that begin alike. What is known is remembered here by the keys of the prompts'
pages; the replica may have evicted them since, which costs time and changes no token.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from gptoss_dist.engine.pages import key_of
from gptoss_dist.engine.request import Event, Request


@dataclass
class _Placed:
    """A request under way."""

    replica: int
    prompt: int
    """Tokens of its prompt still to compute; 0 after its first event."""
    output: int
    """Tokens it may still generate."""


class Placement:
    """Places requests on `replicas`, and follows their work by the events."""

    def __init__(self, replicas: int, page_size: int | None, remembered: int = 1 << 16) -> None:
        """`page_size`: of the caches that keep prefixes, None if there are none; of `remembered` pages the place."""
        self._page_size, self._remembered = page_size, remembered
        self._work = [0] * replicas
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
        """Tokens that each replica may still have to compute."""
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
        placed = _Placed(replica, len(request.prompt) - known[replica], request.sampling.max_tokens)
        self._placed[request.id] = placed
        self._work[replica] += placed.prompt + placed.output
        self._remember(keys, replica)
        return replica

    def follow(self, event: Event) -> None:
        """Take in what happened to a request."""
        placed = self._placed.get(event.request_id)
        if placed is None:
            return
        done = placed.prompt if event.tokens else 0
        placed.prompt -= done
        placed.output -= len(event.tokens)
        if event.finish is not None:
            done += placed.prompt + placed.output
            del self._placed[event.request_id]
        self._work[placed.replica] -= done + len(event.tokens)

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
