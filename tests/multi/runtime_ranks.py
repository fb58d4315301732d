"""Real ranks for tests, started by hand: no agent watches them, so whatever ends them is the program's own doing.

They are forked from a server that has imported what they need, which makes a test take a second instead of five.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from ports import free_port

from gptoss_dist.launcher.env import read_rank_env
from gptoss_dist.runtime.dist import RankGroup, start
from gptoss_dist.runtime.watch import Watch, guard

Body = Callable[[Watch, RankGroup], None]
Lone = Callable[[], None]
"""What a rank does that nobody watches: it forms a group for itself."""
READY = "is at work"

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(  # one server for all tests: the last list that is set before its start would count
    ["gptoss_dist.session", "gptoss_dist.engine.paged_engine", "gptoss_dist.jobs.generate"]
)


def become_rank(log: str, variables: dict[str, str]) -> None:
    """In the new process: take a launcher's variables, and print into `log`."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    os.environ.update(variables)


def run_body(body: Body, log: str, variables: dict[str, str], grace_s: float, join_s: float) -> None:
    """One rank's whole life; runs in the new process."""
    become_rank(log, variables)
    env = read_rank_env(os.environ)
    with guard(env, grace_s=grace_s, join_timeout=timedelta(seconds=join_s)) as watch:
        Path(f"{log}.joined").touch()
        group = start("cpu", env, store=watch.store)
        group.barrier()
        Path(f"{log}.ready").touch()
        body(watch, group)
        group.stop()


def run_unwatched(body: Lone, log: str, variables: dict[str, str]) -> None:
    """The same without `guard` and group."""
    become_rank(log, variables)
    body()


class Ranks:
    """`world_size` processes that run `body(watch, group)`, or `unwatched()`."""

    def __init__(
        self,
        world_size: int,
        body: Body | None,
        folder: Path,
        *,
        unwatched: Lone | None = None,
        grace_s: float = 2.0,
        join_s: float = 60.0,
        absent: tuple[int, ...] = (),
        address: str = "localhost",
    ) -> None:
        port = str(free_port())
        self._logs = [folder / f"rank{rank}" for rank in range(world_size)]
        self._processes = {}
        for rank in set(range(world_size)) - set(absent):
            variables = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": address,
                "MASTER_PORT": port,
            }
            where = (str(self._logs[rank]), variables)
            self._processes[rank] = (
                _context.Process(target=run_unwatched, args=(unwatched, *where))
                if body is None
                else _context.Process(target=run_body, args=(body, *where, grace_s, join_s))
            )
            self._processes[rank].start()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 120
        while not all(Path(f"{log}.ready").exists() for log in self._logs):
            assert time.monotonic() < deadline, self.printed()
            time.sleep(0.02)

    def send(self, signum: int, *ranks: int) -> None:
        for rank in ranks:
            os.kill(self._processes[rank].pid, signum)

    def statuses(self, within_s: float = 60.0) -> list[int]:
        """Exit statuses by rank, all of which must have ended; negative for a signal."""
        deadline = time.monotonic() + within_s
        for process in self._processes.values():
            process.join(max(0.0, deadline - time.monotonic()))
        hanging = [rank for rank, process in self._processes.items() if process.is_alive()]
        for rank in hanging:
            self._processes[rank].kill()
        assert not hanging, f"ranks {hanging} had not ended after {within_s} s; printed: {self.printed()}"
        return [process.exitcode for _, process in sorted(self._processes.items())]

    def printed(self) -> str:
        """Everything that all ranks printed."""
        return "".join(log.read_text() for log in self._logs if log.exists())

    def alive(self) -> list[int]:
        """The ranks that have not ended."""
        return [rank for rank, process in sorted(self._processes.items()) if process.is_alive()]
