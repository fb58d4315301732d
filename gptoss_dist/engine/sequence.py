"""A request under way: its tokens, how many of them are in the cache, and on which pages."""

from __future__ import annotations

from dataclasses import dataclass, field

from gptoss_dist.engine.pages import key_of
from gptoss_dist.engine.request import Finish, Request

PENDING = -1
"""Stands for the value of a token that the host does not know yet."""


@dataclass(eq=False)
class Sequence:
    """The tokens of a request, prompt first, and where the cache keeps their keys and values.

        tokens    │ prompt                        │ generated          │
        in cache  │◄──────────── computed ─────────────►│◄─ remaining ─►│
        values    │◄──────────── known ──────────────────────►│◄ pending ►│

    A pending token has been chosen on the device and not yet been read by the host: `PENDING` stands in its place.
    Page `i` of both tables holds positions `i * page_size` up to `(i + 1) * page_size`. The tables are equally long; in
    `sliding_table`, -1 stands for pages that no query can see any more. A sequence that waits has neither pages nor
    computed tokens, and keeps what it generated. Two sequences are equal only if they are the same.
    """

    request: Request
    arrival: int
    """Number of requests that came before."""
    tokens: list[int] = field(init=False)
    computed: int = 0
    full_table: list[int] = field(default_factory=list)
    sliding_table: list[int] = field(default_factory=list)
    running: bool = False
    slot: int = -1
    """Place among the running sequences, below `max_running`; -1 while it waits."""
    pending: int = 0
    """Tokens at the end whose values the host does not know yet."""
    fed: bool = False
    """Whether the last token was chosen since the sequence runs: then the device has it, in `slot`."""
    registered: int = 0
    """Pages at the start of the tables that can be found by their keys."""
    branch: int = 0
    """Pages from the start up to where its prompt parts from others, if it is to keep the window there; else 0."""
    preemptions: int = 0
    reused: int = 0
    """Tokens of the prompt that were found in the cache when the sequence first began to run."""
    _keys: list[bytes] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        """Start with the prompt."""
        self.tokens = list(self.request.prompt)

    @property
    def id(self) -> str:
        """The id of the request."""
        return self.request.id

    @property
    def length(self) -> int:
        """Tokens so far: prompt and generated, pending ones included."""
        return len(self.tokens)

    @property
    def known(self) -> int:
        """Tokens whose values the host knows; the pending ones come after them."""
        return len(self.tokens) - self.pending

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt)

    @property
    def generated(self) -> list[int]:
        """The tokens that came after the prompt and are known (a copy)."""
        return self.tokens[self.prompt_length : self.known]

    @property
    def remaining(self) -> int:
        """Tokens that are not in the cache yet: 1 or more while the sequence is not finished."""
        return len(self.tokens) - self.computed

    @property
    def is_prefilling(self) -> bool:
        """Whether more than the last token is missing in the cache: the prompt, or what a preemption dropped."""
        return self.remaining > 1

    @property
    def exhausted(self) -> bool:
        """Whether no token may be chosen any more, whatever the pending ones turn out to be."""
        return self.length - self.prompt_length >= self.request.sampling.max_tokens

    @property
    def finish(self) -> Finish | None:
        """Why the sequence is finished by its last known token; None while it is not."""
        count, sampling = self.known - self.prompt_length, self.request.sampling
        if count and self.tokens[self.known - 1] in sampling.stop_tokens:
            return Finish.stop
        return Finish.length if count >= sampling.max_tokens else None

    def expect(self) -> None:
        """A token is being chosen: its place is taken, its value pending."""
        self.tokens.append(PENDING)
        self.pending += 1
        self.fed = True

    def learn(self, token: int) -> None:
        """The value of the oldest pending token."""
        assert self.pending, f"{self.id} has no pending token"
        self.tokens[self.known] = token
        self.pending -= 1

    def page_key(self, index: int, page_size: int) -> bytes:
        """The key of page `index`, which must be full; each page is hashed once, whatever happens to the sequence."""
        if (index + 1) * page_size > self.known:
            raise IndexError(f"page {index} of {self.id} is not full: there are {self.known} tokens.")
        while len(self._keys) <= index:
            start = len(self._keys) * page_size
            previous = self._keys[-1] if self._keys else b""
            self._keys.append(key_of(previous, self.tokens[start : start + page_size]))
        return self._keys[index]
