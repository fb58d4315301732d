"""A scheduler with a model and a cache that only pretend: every slot of a page knows what was written there."""

from __future__ import annotations

import hashlib
import random
import struct
from collections import Counter, deque
from dataclasses import dataclass, field

from gptoss_dist.engine.pages import PagePool
from gptoss_dist.engine.request import Event, Finish, Request, Sampling
from gptoss_dist.engine.scheduler import Scheduler
from gptoss_dist.engine.sequence import PENDING
from gptoss_dist.engine.step_plan import Chunk
from gptoss_dist.errors import DoesNotFitError

VOCABULARY = 23
Slot = tuple[int, int, int]
"""Position, token, and a fingerprint of all tokens up to it: what keys and values depend on."""


def next_token(tokens: list[int]) -> int:
    """Stands in for a model: any other token, anywhere, changes the answer."""
    packed = struct.pack(f"<{len(tokens)}q", *tokens)
    return int.from_bytes(hashlib.sha256(packed).digest()[:6], "big") % VOCABULARY


def alone(request: Request) -> tuple[list[int], Finish]:
    """What the stand-in generates for a request that is alone, without any cache."""
    tokens, sampling = list(request.prompt), request.sampling
    while len(tokens) < len(request.prompt) + sampling.max_tokens:
        tokens.append(next_token(tokens))
        if tokens[-1] in sampling.stop_tokens:
            return tokens[len(request.prompt) :], Finish.stop
    return tokens[len(request.prompt) :], Finish.length


def fingerprints(tokens: list[int]) -> list[int]:
    value, values = 1, []
    for token in tokens:
        value = (value * 1_000_003 + token + 1) % (2**61 - 1)
        values.append(value)
    return values


def request_of(name: str, tokens: int, max_tokens: int = 4, first: int = 0) -> Request:
    return Request(name, tuple(range(first, first + tokens)), Sampling(max_tokens))


@dataclass
class World:
    """A scheduler whose plans are carried out on a cache of slots, and all that is seen is verified."""

    page_size: int
    full_pages: int
    sliding_pages: int
    window: int
    step_tokens: int
    max_running: int
    lag: int = 1
    """Steps that are launched before the tokens of the last one are known."""
    mixed_step_tokens: int | None = None
    requests: dict[str, Request] = field(default_factory=dict)
    output: dict[str, list[int]] = field(default_factory=dict)
    finish: dict[str, Finish] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    plans: list[list[tuple[str, int, int, bool]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.full = PagePool(self.full_pages, self.page_size)
        self.sliding = PagePool(self.sliding_pages, self.page_size)
        self.scheduler = Scheduler(
            self.full, self.sliding, self.window, self.step_tokens, self.max_running, self.mixed_step_tokens
        )
        self._fed: dict[int, int] = {}
        self._flights: deque[list[int]] = deque()
        self._full_slots: list[list[Slot | None]] = [[] for _ in range(self.full_pages)]
        self._sliding_slots: list[list[Slot | None]] = [[] for _ in range(self.sliding_pages)]

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.scheduler.add(request)
            self.requests[request.id], self.output[request.id] = request, []

    def cancel(self, name: str) -> None:
        event = self.scheduler.cancel(name)
        self.scheduler.check()
        assert event == Event(name, (), Finish.cancelled)
        self.finish[name] = Finish.cancelled

    def step(self) -> list[Chunk]:
        """One step, verified; the tokens are what the stand-in makes of the slots it finds in the cache.

        A token that the scheduler does not know yet is the one that was chosen last for the sequence's slot.
        """
        decoding = {sequence.id for sequence in self.scheduler.running if not sequence.is_prefilling}
        chunks = self.scheduler.schedule()
        self.scheduler.check()
        tokens = sum(chunk.count for chunk in chunks)
        assert tokens <= self.step_tokens
        if self.mixed_step_tokens and any(chunk.sequence.id in decoding for chunk in chunks):
            assert tokens <= self.mixed_step_tokens
            self.seen["held back"] += tokens == self.mixed_step_tokens
        assert len(self.scheduler.running) <= self.max_running
        assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks)
        for chunk in chunks:
            self._write(chunk)
        chosen = []
        for chunk in chunks:
            tokens = self._read(chunk)
            assert chunk.samples == (chunk.end == chunk.sequence.length)
            if chunk.samples:
                chosen.append((chunk.sequence.slot, next_token(tokens)))
        self.plans.append([(chunk.sequence.id, chunk.start, chunk.count, chunk.samples) for chunk in chunks])
        self._fed.update(chosen)
        self.scheduler.launched(chunks)
        self.scheduler.check()
        if chunks:
            self._flights.append([token for _, token in chosen])
        while len(self._flights) > (self.lag if chunks else 0):
            self._take_in(self.scheduler.resolve(self._flights.popleft()))
        if not self.scheduler.has_work:
            self.scheduler.abandon()
            self._flights.clear()
        self.scheduler.check()
        return chunks

    def run(self, steps: int = 10_000) -> None:
        while self.scheduler.has_work:
            steps -= 1
            assert steps > 0, "the requests do not end"
            self.step()

    def verify_outputs(self) -> None:
        """Everything ended; what ended by itself equals the same request alone, what was cancelled its beginning."""
        assert self.full.held == self.sliding.held == 0
        assert self.finish.keys() == self.requests.keys()
        for name, request in self.requests.items():
            tokens, finish = alone(request)
            if self.finish[name] is Finish.cancelled:
                assert self.output[name] == tokens[: len(self.output[name])]
            else:
                assert (self.output[name], self.finish[name]) == (tokens, finish)

    def _take_in(self, events: list[Event]) -> None:
        for event in events:
            assert event.request_id not in self.finish, "an event after the last"
            self.output[event.request_id] += event.tokens
            if event.finish is not None:
                self.finish[event.request_id] = event.finish

    def _tokens(self, chunk: Chunk) -> list[int]:
        sequence = chunk.sequence
        assert len({one.slot for one in self.scheduler.running}) == len(self.scheduler.running)
        assert sequence.pending <= self.lag
        assert sequence.pending == 0 or sequence.fed
        if not sequence.fed:
            return sequence.tokens[: chunk.end]
        assert chunk.count == 1
        assert sequence.tokens[chunk.start] in (PENDING, self._fed[sequence.slot])
        return [*sequence.tokens[: chunk.start], self._fed[sequence.slot]]

    def _write(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        assert chunk.start == sequence.computed
        tokens = self._tokens(chunk)
        prints = fingerprints(tokens)
        for position in range(chunk.start, chunk.end):
            index, offset = divmod(position, self.page_size)
            slot = (position, tokens[position], prints[position])
            for table, slots in (
                (sequence.full_table, self._full_slots),
                (sequence.sliding_table, self._sliding_slots),
            ):
                assert table[index] >= 0, "a token has no place"
                page = slots[table[index]]
                if offset == 0:
                    page[:] = [None] * self.page_size  # nothing of the page's earlier life may be seen
                page[offset] = slot

    def _read(self, chunk: Chunk) -> list[int]:
        """Verify what every query of the chunk can see, and return the tokens that the full layers hold."""
        sequence, size = chunk.sequence, self.page_size
        tokens = self._tokens(chunk)
        expected = list(zip(range(chunk.end), tokens, fingerprints(tokens), strict=True))
        cached = [self._full_slots[sequence.full_table[at // size]][at % size] for at in range(chunk.end)]
        assert cached == expected, f"{sequence.id}: a full layer sees something else"
        for query in range(chunk.start, chunk.end):
            for at in range(max(0, query - self.window + 1), query + 1):
                page = sequence.sliding_table[at // size]
                assert page >= 0, f"{sequence.id}: position {at} is gone, and {query} sees it"
                assert self._sliding_slots[page][at % size] == expected[at], f"{sequence.id}: {query} sees another"
        return [slot[1] for slot in cached if slot is not None]


class Traffic:
    """Random requests that often begin alike, and random cancellations."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.rng = world, random.Random(seed)
        self._systems = [self._tokens(length) for length in (5, 12, 23, 30)]
        self._count = 0

    def step(self) -> None:
        """Requests come in bursts, so that the cache is sometimes crowded and sometimes idle."""
        world, rng = self.world, self.rng
        if rng.random() < 0.18 and len(world.scheduler.waiting) < 8:
            for _ in range(rng.randrange(1, 6)):
                self._add()
        if rng.random() < 0.06:
            self._cancel()
        waited = {one.id for one in world.scheduler.waiting}
        for chunk in world.step():
            if chunk.sequence.id in waited and chunk.start >= world.window + world.page_size:
                world.seen["again behind a window" if chunk.sequence.preemptions else "began behind a window"] += 1

    def _cancel(self) -> None:
        states: dict[str, list[str]] = {}
        for one in (*self.world.scheduler.running, *self.world.scheduler.waiting):
            state = "running" if one.running else "given way" if one.preemptions else "waiting"
            states.setdefault(state, []).append(one.id)
        if states:
            state = self.rng.choice(sorted(states))
            self.world.seen[f"cancelled {state}"] += 1
            self.world.cancel(self.rng.choice(states[state]))

    def _add(self) -> None:
        world, rng = self.world, self.rng
        prompt = list(rng.choice(self._systems))
        if rng.random() < 0.3:
            prompt = prompt[: rng.randrange(1, len(prompt))]
        if world.requests and rng.random() < 0.25:  # the next turn of a conversation, or the same again
            name = rng.choice(sorted(world.requests))
            prompt = [*world.requests[name].prompt, *world.output[name]]
        prompt = (prompt + self._tokens(rng.choice((0, 1, 3, 17))))[-60:]
        stop = (rng.randrange(VOCABULARY),) if rng.random() < 0.5 else ()
        self._count += 1
        request = Request(str(self._count), tuple(prompt), Sampling(rng.choice((1, 4, 9, 30)), stop_tokens=stop))
        try:
            world.add(request)
        except DoesNotFitError:
            world.seen["refused"] += 1

    def _tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(VOCABULARY) for _ in range(count)]


def crowd(**other: int) -> World:
    """Pages of 4 tokens; more of everything than a test needs, but for what it names."""
    return World(**{
        "page_size": 4,
        "full_pages": 64,
        "sliding_pages": 64,
        "window": 8,
        "step_tokens": 32,
        "max_running": 8,
        **other,
    })  # fmt: skip


def trace() -> str:
    """All that a rank decides in 300 steps of crowded traffic."""
    world = World(4, 24, 20, 10, 16, 6)
    traffic = Traffic(world, seed=1)
    for _ in range(300):
        traffic.step()
    tables = [(one.full_table, one.sliding_table) for one in world.scheduler.running]
    return hashlib.sha256(repr((world.plans, tables, world.output)).encode()).hexdigest()


if __name__ == "__main__":
    print(trace())
