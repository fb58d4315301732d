"""Small messages between the ranks of one machine through memory that all of them map.

A step of the engine begins with what rank 0 tells the others. Through gloo that takes a quarter of a millisecond,
and now and then six, of a step of two. Here it takes microseconds: nobody sleeps while the others are about to come.

Every rank has a page of its own, which it alone writes:

    written │ read │ slot 0: size, bytes │ slot 1 │ …

Messages are numbered, alike on all ranks: all make the same calls in the same order. Message n lies in slot n mod SLOTS
of its writer's page, and `written` becomes n once it is whole; who has taken it sets `read` to n. A slot is written
again when every rank has read what was in it. Of a message longer than a slot only that is said; it goes another way.

Memory does not tell that the rank is gone for which another one waits: who waits looks for its process now and then.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from gptoss_dist.errors import RankError
from gptoss_dist.log import get_logger
from gptoss_dist.runtime.process import Process, process_of
from gptoss_dist.runtime.shared_memory import first_problem, share

logger = get_logger(__name__)

SLOTS = 4
SLOT_BYTES = 256 << 10
_LINE = 64
"""Bytes between what different ranks write, a line of the processor's cache."""
_TOO_LONG = 2**64 - 1
_WAITS = ((2e-4, 0.0), (1e-2, 2e-5), (5e-2, 2e-4), (float("inf"), 1e-3))
"""(seconds of waiting until then, seconds of a nap): at first none, for ranks that come a moment later."""
_LOOK_SECONDS = 1.0
"""Between two looks for the process that is waited for. The second that finds it gone counts: `guard` is quicker."""


def page_bytes(slot_bytes: int = SLOT_BYTES) -> int:
    """Of one rank."""
    return 2 * _LINE + SLOTS * (_LINE + slot_bytes)


class Board:
    """One rank's view of all pages."""

    def __init__(self, memory: mmap.mmap, rank: int, processes: Sequence[Process], first: int = 0) -> None:
        """`memory` holds a page for each rank, all zeros before the first message; `processes` by rank.

        `first`: the rank, among all of the run, that is rank 0 here; errors name ranks of the run.
        """
        self._memory, self._rank, self._processes, self._first = memory, rank, processes, first
        self._size = len(memory) // len(processes)
        self._slot_bytes = (self._size - 2 * _LINE) // SLOTS - _LINE
        self._bytes = memoryview(memory)
        self._numbers = self._bytes.cast("Q")
        self._world = range(len(processes))
        self._count = 0
        self._fence = threading.Lock()
        self._fence.acquire()  # for good: see _order

    def broadcast(self, message: bytes | None, src: int) -> bytes | None:
        """What rank `src` gives as `message`, on every rank; None on every rank if that is too long. Collective.

        Raises RankError if a rank has ended that this one waits for.
        """
        self._count += 1
        if self._rank == src:
            assert message is not None
            self._write(message)
        found = self._read(src)
        self._done()
        return found

    def all_gather(self, message: bytes) -> list[bytes] | None:
        """Every rank's message by rank, on every rank; None on every rank if one is too long. Collective.

        Raises RankError if a rank has ended that this one waits for.
        """
        self._count += 1
        self._write(message)
        found = [self._read(rank) for rank in self._world]
        self._done()
        whole = [one for one in found if one is not None]
        return whole if len(whole) == len(found) else None

    def close(self) -> None:
        """Give the memory back."""
        self._numbers.release()
        self._bytes.release()
        self._memory.close()

    def _write(self, message: bytes) -> None:
        for rank in self._world:
            self._wait(rank, _LINE, self._count - SLOTS)
        place = self._slot(self._rank)
        long = len(message) > self._slot_bytes
        self._numbers[place // 8] = _TOO_LONG if long else len(message)
        if not long:
            self._bytes[place + _LINE : place + _LINE + len(message)] = message
        self._order()
        self._numbers[self._rank * self._size // 8] = self._count

    def _read(self, rank: int) -> bytes | None:
        self._wait(rank, 0, self._count)
        place = self._slot(rank)
        size = self._numbers[place // 8]
        return None if size == _TOO_LONG else bytes(self._bytes[place + _LINE : place + _LINE + size])

    def _done(self) -> None:
        self._order()
        self._numbers[(self._rank * self._size + _LINE) // 8] = self._count

    def _slot(self, rank: int) -> int:
        return rank * self._size + 2 * _LINE + self._count % SLOTS * (_LINE + self._slot_bytes)

    def _wait(self, rank: int, place: int, least: int) -> None:
        """Until the number at `place` of a rank's page is `least` or more. Raises RankError if that rank has ended."""
        number = (rank * self._size + place) // 8
        if self._numbers[number] < least:
            begun = time.perf_counter()
            look_at, gone = _LOOK_SECONDS, False
            while self._numbers[number] < least:
                waited = time.perf_counter() - begun
                time.sleep(next(nap for until, nap in _WAITS if waited < until))
                if waited > look_at:
                    look_at, gone = waited + _LOOK_SECONDS, self._is_gone(rank, gone)
        self._order()

    def _is_gone(self, rank: int, before: bool) -> bool:
        """Whether a rank's process has ended. Raises RankError if it had `before`."""
        process = self._processes[rank]
        with contextlib.suppress(OSError):  # no file to open now, say: it is looked for again
            if process.lives():
                return False
            if before:
                raise RankError(
                    f"rank {self._first + rank} (process {process.pid}) has ended, and rank "
                    f"{self._first + self._rank} waits for it: what it printed last says why. Start all ranks again"
                )
            return True
        return before

    def _order(self) -> None:
        """Reads and writes before stay before those after, on every processor.

        Nothing moves down past the release of a lock, nothing up past its taking, and the taking sees the release. The
        other way round would order nothing: what is before and what is after may both move to between taking and
        release, and pass each other there, as Arm processors let them.
        """
        self._fence.release()
        self._fence.acquire()


def open_board(
    rank: int, world_size: int, broadcast: Callable[[Any], Any], all_gather: Callable[[Any], list[Any]], first: int = 0
) -> Board | None:
    """The board of these ranks, or None if they share no memory; the same answer on every rank. Collective.

    `broadcast` gives rank 0's value on every rank and `all_gather` every rank's, some other way. Rank 0 logs why ranks
    of one machine have no board. `first`: see `Board`.
    """
    processes = all_gather(process_of())
    if any(one is None or one.boot != processes[0].boot for one in processes):
        return None  # several machines
    memory, problem = None, first_problem(all_gather(_unseen(rank, processes, first)))
    if problem is None:
        memory, problem = share(rank, world_size * page_bytes(), broadcast, all_gather)
    if memory is None:
        if rank == 0:
            logger.warning("messages between the ranks go through gloo, which takes longer: %s", problem)
        return None
    return Board(memory, rank, processes, first)


def _unseen(rank: int, processes: Sequence[Process], first: int) -> str | None:
    """Why this rank could not see another one end; None if it can."""
    for peer, process in enumerate(processes):
        seen = False
        with contextlib.suppress(OSError):
            seen = process.namespace == processes[rank].namespace and process.lives()
        if not seen:
            return (
                f"rank {first + rank} does not see the process of rank {first + peer}, which runs in another "
                "container or is hidden."
            )
    return None
