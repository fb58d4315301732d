"""Which tokens go through the model in the next step: continuous batching, first come first served. No tensors here.

A step takes up to `step_tokens` tokens, in the order of arrival:

1. one token of every running sequence that misses only its last one in the cache (decode);
2. the next chunk of the running sequence that still prefills: only the youngest can, see below;
3. the first chunks of waiting requests. None overtakes another, and none begins in a step in which one gave way.

Where 1 is not empty, 2 and 3 have only what it leaves of `mixed_step_tokens`: who decodes waits less for prompts, and
those come later.

    waiting (deque)  ── begin ──►  running (list)  ── stop token, max_tokens, cancel ──►  gone
          ▲                             │
          └── front ◄── give way ───────┘  the youngest: its pages are released, its generated tokens kept

Who runs is always older than who waits, so both are sorted by arrival. A sequence begins only if those before it have
all their tokens in the step, so at most the youngest is still prefilling after it. The oldest can take the pages of all
others, so it advances in every step, and every request ends. All ranks make the same calls and get the same plans.

The host may be a step behind: `schedule` plans the next step while the tokens of the one before are still being chosen
on the device.

    schedule n   launched n   schedule n+1   launched n+1   resolve n   schedule n+2   launched n+2   resolve n+1   …

`launched` counts tokens as computed and leaves a place for each that is being chosen; `resolve` fills in the values,
lets pages be found that needed them, and finds who is finished. Of a request that a stop token ends, one token more has
been launched by then: it is dropped. `max_tokens` is known in advance and costs no such token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as SequenceOf

from gptoss_dist.engine.page_needs import PageCounts
from gptoss_dist.engine.page_tables import PageTables
from gptoss_dist.engine.pages import PageAccountError, PagePool
from gptoss_dist.engine.request import Event, Finish, Request
from gptoss_dist.engine.room import Room
from gptoss_dist.engine.sequence import Sequence
from gptoss_dist.engine.step_plan import Chunk, StepPlan
from gptoss_dist.errors import ConfigError


class Scheduler:
    """Call `schedule`, launch its chunks, `launched`, and `resolve` with the chosen tokens; add and cancel between."""

    def __init__(
        self,
        full_pool: PagePool,
        sliding_pool: PagePool,
        window: int,
        step_tokens: int,
        max_running: int,
        mixed_step_tokens: int | None = None,
    ) -> None:
        """Nothing runs yet. ConfigError if a step could not hold a token of every running sequence.

        `mixed_step_tokens`: of a step that also decodes; None: as many as of any.
        """
        mixed = step_tokens if mixed_step_tokens is None else min(mixed_step_tokens, step_tokens)
        if not 1 <= max_running <= mixed:
            raise ConfigError(
                f"scheduler: {max_running} sequences at once and {mixed} tokens a step: every running sequence "
                "needs a token of the step. Allow at least one sequence, and at least as many tokens as sequences."
            )
        self._tables = PageTables(full_pool, sliding_pool, window)
        pages = PageCounts(full_pool.page_count, sliding_pool.page_count)
        self.room = Room(pages, full_pool.page_size, window, max_running)
        """What it can hold at all."""
        self._step_tokens, self._mixed_tokens, self._max_running = step_tokens, mixed, max_running
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._by_id: dict[str, Sequence] = {}
        self._plan: StepPlan | None = None
        self._flights: deque[list[Sequence]] = deque()
        self._slots = list(range(max_running - 1, -1, -1))
        self._refused: tuple[int, int, PagePool, int] | None = None
        self._arrivals = 0
        self.preemptions = 0
        """How often a sequence gave way so far."""
        self.generated = 0
        """Tokens chosen so far, without the dropped ones."""

    @property
    def has_work(self) -> bool:
        """Whether a request is not finished."""
        return bool(self._by_id)

    @property
    def waiting(self) -> SequenceOf[Sequence]:
        """Sequences without pages, in the order in which they will begin; not a copy."""
        return self._waiting

    @property
    def running(self) -> SequenceOf[Sequence]:
        """Sequences that hold pages, the oldest first; not a copy."""
        return self._running

    @property
    def awaits_constraint(self) -> bool:
        """Whether a running sequence's constraint has to be told a token that the host does not know yet."""
        return any(sequence.pending and sequence.request.constraint is not None for sequence in self._running)

    @property
    def pools(self) -> tuple[PagePool, PagePool]:
        """The accounts of the full and of the sliding pages."""
        return self._tables.full, self._tables.sliding

    def add(self, request: Request) -> Sequence:
        """Let a request wait. DoesNotFitError if it does not fit; ConfigError if its id is in use."""
        if request.id in self._by_id:
            raise ConfigError(f"request {request.id}: a request of this id is under way. Ids are unique.")
        self.room.check(request)
        sequence = Sequence(request, self._arrivals)
        self._arrivals += 1
        self._by_id[request.id] = sequence
        self._waiting.append(sequence)
        return sequence

    def cancel(self, request_id: str) -> Event | None:
        """End a request wherever it is and release what it holds; None if the id is unknown or finished."""
        assert self._plan is None, "requests are cancelled between steps: the model may be writing their pages"
        sequence = self._by_id.get(request_id)
        if sequence is None:
            return None
        self._end([sequence])
        return Event(request_id, (), Finish.cancelled)

    def schedule(self) -> list[Chunk]:
        """The chunks of the next step, with pages for all their tokens; empty if there is no work, or none to launch.

        All of them can be written before any is read: no chunk writes a page that another one sees. At most one step
        that was launched may be unresolved.
        """
        assert self._plan is None, "the step before was not launched"
        assert len(self._flights) <= 1, "two steps before were not resolved"
        plan = self._plan = StepPlan(self._step_tokens, self._mixed_tokens)
        before = self.preemptions
        for sequence in tuple(self._running):
            if sequence.running and not sequence.exhausted:
                if sequence.is_prefilling:
                    plan.hold_back()
                self._continue(plan, sequence)
        if self.preemptions == before:
            plan.hold_back()
            self._begin(plan)
        assert plan.chunks or self._flights or not self.has_work, "the oldest sequence can always advance"
        return list(plan.chunks)

    def launched(self, chunks: list[Chunk]) -> None:
        """The chunks of the last plan are on their way through the model: what comes next may build on them."""
        assert self._plan is not None, "there is no plan"
        assert chunks == self._plan.chunks, "the chunks are not those that were planned"
        self._plan = None
        for chunk in chunks:
            self._tables.advance(chunk.sequence, chunk.count)
            if chunk.samples:
                chunk.sequence.expect()
        if chunks:
            self._flights.append([chunk.sequence for chunk in chunks if chunk.samples])

    def resolve(self, tokens: SequenceOf[int | None]) -> list[Event]:
        """Take in what was chosen by the oldest unresolved step: a token for each chunk that sampled, in their order.

        None stands for a request whose constraint allowed nothing. Whoever ended since gets no event.
        """
        assert self._plan is None, "steps are resolved between plans"
        assert self._flights, "no step is under way"
        assert len(tokens) == len(self._flights[0]), f"{len(tokens)} tokens for {len(self._flights[0])} sequences"
        events, ended = [], []
        for sequence, token in zip(self._flights.popleft(), tokens, strict=True):
            if self._by_id.get(sequence.id) is not sequence:
                continue
            event = self._learn(sequence, token)
            events.append(event)
            if event.finish is not None:
                ended.append(sequence)
        self._end(ended)
        return events

    def abandon(self) -> None:
        """There is no work: forget the steps under way, whose tokens nobody waits for."""
        assert not self.has_work, "somebody waits for a token"
        self._flights.clear()

    def check(self) -> None:
        """Raise PageAccountError if tables, pages or slots are not in order, or sequences are not in theirs."""
        plan = self._plan
        self._tables.check((one, plan.end_of(one) if plan else one.computed) for one in self._running)
        for sequence in self._waiting:
            if sequence.running or sequence.full_table or sequence.sliding_table or sequence.computed:
                raise PageAccountError(f"sequence {sequence.id} waits and holds pages.")
        if self._plan is None and any(sequence.is_prefilling for sequence in self._running[:-1]):
            raise PageAccountError("a sequence is prefilling that is not the youngest.")
        order = [*self._running, *self._waiting]
        slots = sorted([*self._slots, *(sequence.slot for sequence in self._running)])
        if slots != list(range(self._max_running)) or any(sequence.slot != -1 for sequence in self._waiting):
            raise PageAccountError(f"slots are lost or shared: {slots} of {self._max_running}.")
        arrivals = [sequence.arrival for sequence in order]
        strays = {one.id: one for one in order} != self._by_id or not all(one.running for one in self._running)
        if arrivals != sorted(arrivals) or strays:
            raise PageAccountError(f"sequences run and wait out of order, or are lost: {[one.id for one in order]}.")

    def _continue(self, plan: StepPlan, sequence: Sequence) -> None:
        """Plan the next chunk of a running sequence; if there is no page for it, younger ones give way.

        The youngest of all keeps its pages and waits for a step in which there is one.
        """
        while (room := self._tables.room(sequence)) < 1:
            if self._running[-1] is sequence:
                return
            self._give_way()
        self._add(plan, sequence, min(plan.left, sequence.remaining, room))

    def _begin(self, plan: StepPlan) -> None:
        """Plan the first chunks of waiting requests, as long as there is a place, a token and a page.

        One full page stays available for each running sequence, else the newcomer would soon have to give way. Pages of
        sliding layers come back after the step, so a chunk is cut to what there is of them.
        """
        while self._waiting and plan.left and len(self._running) < self._max_running:
            spare = len(self._running)
            if not (self._tables.full.can_allocate(spare + 1) and self._tables.sliding.can_allocate(1)):
                return  # the first chunk begins a page: no need to look for its prefix
            sequence = self._waiting[0]
            assert not sequence.pending, f"{sequence.id} gave way, and its last token was not resolved"
            if self._still_refused(sequence):
                return
            prefix = self._tables.find(sequence)
            full_room, sliding_room = self._tables.room_after(prefix, spare)
            count = min(plan.left, sequence.length - len(prefix.full) * self._tables.page_size)
            if full_room < count or sliding_room < 1:
                scarce = self._tables.full if full_room < count else self._tables.sliding
                self._refused = (sequence.arrival, spare, scarce, scarce.available)
                return
            self._waiting.popleft()
            self._running.append(sequence)
            sequence.running, sequence.slot = True, self._slots.pop()
            self._tables.adopt(sequence, prefix)
            self._add(plan, sequence, min(count, sliding_room))

    def _still_refused(self, sequence: Sequence) -> bool:
        """Whether pages were too few for it, and none was released since: spares looking for a long prefix."""
        if self._refused is None:
            return False
        arrival, running, scarce, available = self._refused
        return sequence.arrival == arrival and len(self._running) >= running and scarce.available <= available

    def _add(self, plan: StepPlan, sequence: Sequence, count: int) -> None:
        self._tables.grow(sequence, plan.add(sequence, count).end)

    def _give_way(self) -> None:
        """The youngest waits again, before all others, and is computed anew; it is not in the plan yet."""
        sequence = self._running.pop()
        self._stop(sequence)
        sequence.preemptions += 1
        self.preemptions += 1
        self._waiting.appendleft(sequence)

    def _learn(self, sequence: Sequence, token: int | None) -> Event:
        """The event of a chosen token, and the pages that it completes."""
        if token is None:
            return Event(sequence.id, (), Finish.blocked)
        first = sequence.known == sequence.prompt_length
        sequence.learn(token)
        self.generated += 1
        self._tables.register(sequence)
        return Event(sequence.id, (token,), sequence.finish, cached=sequence.reused if first else 0)

    def _end(self, ended: list[Sequence]) -> None:
        """Forget sequences, wherever they are, and release what they hold."""
        for sequence in ended:
            del self._by_id[sequence.id]
            if sequence.running:
                self._stop(sequence)
            else:
                self._waiting.remove(sequence)
        if ended:
            self._running = [sequence for sequence in self._running if sequence.running]

    def _stop(self, sequence: Sequence) -> None:
        self._tables.drop(sequence)
        self._slots.append(sequence.slot)
        sequence.running, sequence.fed, sequence.slot = False, False, -1
