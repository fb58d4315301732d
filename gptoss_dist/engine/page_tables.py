"""The page tables of sequences: they grow, let go of what has left the window, and may start from a cached prefix.

A query at position p sees the positions above p - window of a sliding layer, and all up to p of a full one. With
`computed` tokens in the cache the next query is at p = computed, so between two steps the tables are

    positions      0 ─────────────── p - window │ p - window + 1 ─────── p - 1 │ p
    full table     │ page │ page │ page │ page │ page │ page │ page │ page │
    sliding table  │  -1  │  -1  │  -1  │ page │ page │ page │ page │ page │
                                            ▲ the first page with a position that can be seen

While a chunk is computed both tables also reach its end: its queries see different windows, all of them at once. A
prefix of n tokens can be reused if every full page of it is cached, and of the sliding pages those with a position in
(n - window, n): n takes the place of p.

Which sliding pages a later prompt needs is known here, so that the rest is evicted first. Warm are the windows

    prompt         │ what all begin with │ a question │ generated │
                                   window ▲     window ▲    window ▲
                     where prompts part ──┘  its end ──┘           └── end of the sequence

A prompt that goes on from a window and leaves it behind makes it cold, for its own end takes its place, unless prompts
have parted there. That they do is seen when full pages are found further than windows, or a window that is cold: the
second prompt that begins alike keeps it for the third.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from gptoss_dist.engine.pages import PageAccountError, PagePool, Worth
from gptoss_dist.engine.sequence import Sequence


class Prefix(NamedTuple):
    """Cached pages a sequence can start from: all the full ones, and the last sliding ones."""

    full: list[int]
    sliding: list[int]
    branch: int = 0
    """Pages from the start up to where prompts part, if no window was kept for it there; else 0."""


class PageTables:
    """The two pools, and what happens to the tables of a sequence. Which sequence may grow is decided elsewhere."""

    def __init__(self, full: PagePool, sliding: PagePool, window: int) -> None:
        """Both pools have pages of one size; ValueError if not, or if a query does not even see itself."""
        if full.page_size != sliding.page_size or window < 1:
            raise ValueError(f"pages of {full.page_size} and {sliding.page_size} tokens, window {window}.")
        self.full, self.sliding, self.window = full, sliding, window
        self.page_size = full.page_size

    def first_visible(self, position: int) -> int:
        """The first page that a query at `position`, or a later one, can see in a sliding layer."""
        return max(0, position - self.window + 1) // self.page_size

    def room(self, sequence: Sequence) -> int:
        """Tokens after the computed ones for which both tables have a page or could get one."""
        pages = len(sequence.full_table) + min(self.full.available, self.sliding.available)
        return pages * self.page_size - sequence.computed

    def grow(self, sequence: Sequence, end: int) -> None:
        """Give the sequence the pages for its tokens before `end`, which must be within `room`."""
        count = self.full.pages_for(end) - len(sequence.full_table)
        if count > 0:
            sequence.full_table += self.full.allocate(count)
            sequence.sliding_table += self.sliding.allocate(count)

    def advance(self, sequence: Sequence, count: int) -> None:
        """Count `count` more tokens as computed: their full pages can be found, and what no query sees is released.

        The model may still be at work on them: it does one step after the other, so whoever gets the pages next writes
        them after this step has read them.
        """
        before = sequence.computed
        sequence.computed = after = before + count
        self.register(sequence)
        self._leave(sequence, range(self.first_visible(before), self.first_visible(after)))

    def register(self, sequence: Sequence) -> None:
        """Let the computed pages be found whose tokens are all known; the others follow when theirs are.

        A sliding page has left the window by then only where the window is a single token, and a prefix needs none.
        """
        for index in range(sequence.registered, min(sequence.computed, sequence.known) // self.page_size):
            key = sequence.page_key(index, self.page_size)
            self.full.register(sequence.full_table[index], key)
            if sequence.sliding_table[index] >= 0:
                self.sliding.register(sequence.sliding_table[index], key)
            sequence.registered = index + 1

    def drop(self, sequence: Sequence) -> None:
        """Release all pages. The beginning of a prefix is needed more often than its end, so it is evicted later."""
        for page in reversed(sequence.full_table):
            self.full.release(page)
        self._leave(sequence, range(len(sequence.sliding_table)))
        for index in reversed(self._window(sequence.registered)):  # also what was left since the last page was full
            self._keep(sequence, index, Worth.warm)
        sequence.full_table, sequence.sliding_table, sequence.computed, sequence.registered = [], [], 0, 0

    def _leave(self, sequence: Sequence, pages: range) -> None:
        """Release those of these sliding pages that the sequence holds: cold ones, and where others may go on."""
        branch = self._window(sequence.branch)
        # The same prompt once more needs a token to compute: where it ends with a page, it reuses one page less.
        again = self._window((sequence.prompt_length - 1) // self.page_size)
        end = range(again.start, sequence.prompt_length // self.page_size)
        for index in pages:
            page, sequence.sliding_table[index] = sequence.sliding_table[index], -1
            if page >= 0:
                self.sliding.release(page, Worth.cold)
                if index in branch or index in end:
                    self._keep(sequence, index, Worth.branch if index in branch else Worth.warm)

    def _keep(self, sequence: Sequence, index: int, worth: Worth) -> None:
        """Say what the page that is found for this one is worth; it may be another sequence's."""
        if index < sequence.registered:
            page = self.sliding.lookup(sequence.page_key(index, self.page_size))
            if page is not None:
                self.sliding.retain(page)
                self.sliding.release(page, worth)

    def _window(self, pages: int) -> range:
        """The sliding pages without which a prefix of so many pages cannot be reused."""
        return range(self.first_visible(pages * self.page_size), pages)

    def find(self, sequence: Sequence) -> Prefix:
        """The longest cached prefix that leaves at least one token to compute. Holds and changes nothing."""
        full: list[int] = []
        sliding: list[int] = []  # -1: not cached
        unbroken = best = 0
        for index in range((sequence.length - 1) // self.page_size):
            key = sequence.page_key(index, self.page_size)
            full_page, sliding_page = self.full.lookup(key), self.sliding.lookup(key)
            if full_page is None:
                break
            full.append(full_page)
            sliding.append(-1 if sliding_page is None else sliding_page)
            unbroken = 0 if sliding_page is None else unbroken + 1
            if unbroken >= len(self._window(index + 1)):
                best = index + 1
        window = self._window(best)
        found = sliding[window.start : window.stop]
        unexpected = len(full) > best or any(self.sliding.worth(page) is Worth.cold for page in found)
        return Prefix(full[:best], found, branch=len(full) if unexpected else 0)

    def room_after(self, prefix: Prefix, spare: int) -> tuple[int, int]:
        """Tokens after `prefix` for which there are full and sliding pages, if `spare` full pages stay available."""
        full = self.full.available - self.full.cached_among(prefix.full) - spare
        sliding = self.sliding.available - self.sliding.cached_among(prefix.sliding)
        return full * self.page_size, sliding * self.page_size

    def adopt(self, sequence: Sequence, prefix: Prefix) -> None:
        """Start a sequence without pages from what `find` returned."""
        for page in prefix.full:
            self.full.retain(page)
        for page in prefix.sliding:
            self.sliding.retain(page)
        hidden = len(prefix.full) - len(prefix.sliding)
        sequence.full_table = list(prefix.full)
        sequence.sliding_table = [-1] * hidden + prefix.sliding
        sequence.registered, sequence.branch = len(prefix.full), prefix.branch
        sequence.computed = len(prefix.full) * self.page_size
        if not sequence.preemptions:
            sequence.reused = sequence.computed

    def check(self, ends: Iterable[tuple[Sequence, int]]) -> None:
        """Look at the sequences that hold pages, each with the position up to which its tables have to reach.

        Raises PageAccountError if a table is not whole, or a page is not held by exactly the tables that name it.
        """
        full, sliding = Counter[int](), Counter[int]()
        for sequence, end in ends:
            self._check_whole(sequence, end)
            full.update(sequence.full_table)
            sliding.update(page for page in sequence.sliding_table if page >= 0)
        self.full.check(full)
        self.sliding.check(sliding)

    def _check_whole(self, sequence: Sequence, end: int) -> None:
        pages = self.full.pages_for(end)
        hidden = min(pages, self.first_visible(sequence.computed))
        whole = len(sequence.full_table) == pages and min(sequence.full_table, default=0) >= 0
        slid = len(sequence.sliding_table) == pages and all(page < 0 for page in sequence.sliding_table[:hidden])
        if not (whole and slid and all(page >= 0 for page in sequence.sliding_table[hidden:])):
            raise PageAccountError(
                f"sequence {sequence.id}: {sequence.computed} tokens computed, {end} wanted, window "
                f"{self.window}, and the tables are {sequence.full_table} and {sequence.sliding_table}."
            )
