"""The pages of a KV cache, counted: who holds them, and which are kept for their content. Numbers only, no tensors.

A page is in one of three states, and the three always add up to all pages:

    free ── allocate ──► held ── last release, no key ──► free
                         │  ▲
      last release, with │  │ retain: found by its key
                         ▼  │
                        cached ── evicted by allocate: cold ones, then the others ──► held, its key forgotten

Within the cold and within the others, the least recently used goes first. A key stands for a whole prefix, up to and
with the tokens of its page: it is a chain of hashes over the pages before. Nothing depends on time, chance or the
order of a set, so that ranks that make the same calls get the same pages.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from enum import Enum

_KEY_BYTES = 16


class PageAccountError(RuntimeError):
    """The account of the pages is wrong: a defect of this program, not something a user can act on."""


def key_of(previous: bytes, tokens: Sequence[int]) -> bytes:
    """The 128-bit key (BLAKE2b, RFC 7693) of a page with these tokens after the prefix `previous`, empty at first."""
    return hashlib.blake2b(previous + struct.pack(f"<{len(tokens)}q", *tokens), digest_size=_KEY_BYTES).digest()


class Worth(Enum):
    """What a page without an owner is kept for."""

    cold = "cold"
    """Nobody is likely to go on from it: evicted before all others."""
    warm = "warm"
    """A prompt may go on from it."""
    branch = "branch"
    """As warm, and prompts have parted here, as others will: it stays a branch, whoever else releases it."""


class PagePool:
    """`page_count` pages of `page_size` tokens each, numbered from 0."""

    def __init__(self, page_count: int, page_size: int) -> None:
        """All pages are free; ValueError if there are none, or none of a token."""
        if page_count < 1 or page_size < 1:
            raise ValueError(f"{page_count} pages of {page_size} tokens: both must be 1 or more.")
        self.page_count, self.page_size = page_count, page_size
        self._references = [0] * page_count
        self._keys: list[bytes | None] = [None] * page_count
        self._page_of: dict[bytes, int] = {}
        self._free = list(range(page_count - 1, -1, -1))
        self._worth = [Worth.cold] * page_count
        self._cold: OrderedDict[int, None] = OrderedDict()
        self._warm: OrderedDict[int, None] = OrderedDict()
        self.evictions = 0
        """Cached pages that were given away so far."""

    @property
    def free(self) -> int:
        """Pages without an owner and without content worth keeping."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Pages without an owner that are kept for their content."""
        return len(self._cold) + len(self._warm)

    @property
    def warm(self) -> int:
        """The cached pages that are not cold."""
        return len(self._warm)

    @property
    def held(self) -> int:
        """Pages with an owner."""
        return self.page_count - self.available

    @property
    def available(self) -> int:
        """Pages that can be allocated: the free and the cached."""
        return len(self._free) + self.cached

    def pages_for(self, tokens: int) -> int:
        """Pages that hold `tokens` tokens from the start of a page."""
        return -(-tokens // self.page_size)

    def can_allocate(self, count: int) -> bool:
        """Whether `allocate(count)` would succeed."""
        return count <= self.available

    def allocate(self, count: int) -> list[int]:
        """Hold `count` pages once each, free ones before cached ones; PageAccountError if there are fewer."""
        if not self.can_allocate(count):
            raise PageAccountError(f"{count} pages wanted, and {self.free} are free and {self.cached} cached.")
        return [self._take() for _ in range(count)]

    def retain(self, page: int) -> None:
        """Hold a page that is held or cached once more."""
        if self._references[page] == 0:
            if self._keys[page] is None:
                raise PageAccountError(f"page {page} is free: it has no content to share.")
            del self._queue(page)[page]
        self._references[page] += 1

    def release(self, page: int, worth: Worth = Worth.warm) -> None:
        """Hold a page once less. The last release frees it, or keeps it if it has a key, for what it is worth then.

        PageAccountError if nobody holds it.
        """
        if self._references[page] < 1:
            raise PageAccountError(f"page {page} is released, and nobody holds it.")
        self._references[page] -= 1
        if self._worth[page] is not Worth.branch:
            self._worth[page] = worth
        if self._references[page]:
            return
        if self._keys[page] is None:
            self._free.append(page)
            return
        self._queue(page)[page] = None

    def register(self, page: int, key: bytes) -> None:
        """Let a held page, now full, be found by `key`. If another page has this key already, that one stays.

        PageAccountError if nobody holds the page, or if it has another key.
        """
        if self._references[page] < 1 or self._keys[page] not in (None, key):
            raise PageAccountError(f"page {page} cannot take a key: it has {self._references[page]} owners, or a key.")
        if self._page_of.setdefault(key, page) == page:
            self._keys[page] = key

    def lookup(self, key: bytes) -> int | None:
        """The page with this key, held or cached; None if there is none. Changes nothing."""
        return self._page_of.get(key)

    def worth(self, page: int) -> Worth:
        """What whoever released a page last said, if its content is still the same; else cold."""
        return self._worth[page]

    def cached_among(self, pages: Sequence[int]) -> int:
        """How many of these pages have no owner: retaining them makes as many fewer available."""
        return sum(self._references[page] == 0 for page in pages)

    def check(self, holders: Mapping[int, int]) -> None:
        """Compare the account with itself and with `holders`, how often each page is held (others: never).

        Raises PageAccountError that names the first page that is wrong.
        """
        if len(set(self._free)) != len(self._free):
            raise PageAccountError("a page is in the free list twice.")
        free, keyed, held = set(self._free), 0, sum(references > 0 for references in self._references)
        if self.free + self.cached + held != self.page_count:
            raise PageAccountError(f"{self.free} free, {self.cached} cached, {held} held: not {self.page_count} pages.")
        for page, (references, key) in enumerate(zip(self._references, self._keys, strict=True)):
            states = (page in free) + (page in self._cold) + (page in self._warm) + (references > 0)
            if states != 1:
                raise PageAccountError(f"page {page} is in {states} of the states free, cached and held, not in one.")
            if references != holders.get(page, 0):
                raise PageAccountError(f"page {page} counts {references} owners and has {holders.get(page, 0)}.")
            if key is None and not references and page not in free:
                raise PageAccountError(f"page {page} is cached without a key: nobody can find it.")
            if key is not None and (page in free or self._page_of.get(key) != page):
                raise PageAccountError(f"page {page} has a key by which it is not found, or is free with a key.")
            keyed += key is not None
        if keyed != len(self._page_of):
            raise PageAccountError(f"{len(self._page_of)} keys lead to pages, and {keyed} pages have a key.")

    def _take(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, _ = (self._cold or self._warm).popitem(last=False)
            key, self._keys[page] = self._keys[page], None
            if key is None or self._page_of.pop(key) != page:
                raise PageAccountError(f"page {page} was cached without a key of its own.")
            self.evictions += 1
        self._references[page], self._worth[page] = 1, Worth.cold
        return page

    def _queue(self, page: int) -> OrderedDict[int, None]:
        """Where a page of its worth is kept, the next to be evicted first."""
        return self._cold if self._worth[page] is Worth.cold else self._warm
