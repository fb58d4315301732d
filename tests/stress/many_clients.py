"""Hundreds of streaming clients on the toy, a third of whose requests are left in the middle.

    PYTHONPATH=tests:tests/multi python tests/stress/many_clients.py --clients 200 --seconds 60 --backend engine

All who stay must get what they would get alone, no page may be held at the end, and memory may not grow.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

from serve_ranks import Server
from server_load import after, ask_alone, bodies, resident_mb, run_load

from gptoss_dist.model.tiny import tiny_checkpoint

MOST_GROWTH_MB = 32.0
LOOK_S = 2.0


class Memory(threading.Thread):
    """Looks at the memory of all ranks every two seconds."""

    def __init__(self, ranks: dict[int, int]) -> None:
        """`ranks`: process ids."""
        super().__init__(daemon=True)
        self._ranks, self._over = ranks, threading.Event()
        self.seen: dict[int, list[float]] = {rank: [] for rank in ranks}

    def run(self) -> None:
        """Until `stop`."""
        while not self._over.wait(LOOK_S):
            for rank, pid in self._ranks.items():
                self.seen[rank].append(resident_mb(pid))

    def stop(self) -> None:
        """The last look has been taken."""
        self._over.set()
        self.join()


def wait_for_free_pages(server: Server, within_s: float = 30.0) -> None:
    """AssertionError if a page is still held."""
    deadline = time.monotonic() + within_s
    while server.held_pages() or server.metrics()["gptoss_requests_open"]:
        assert time.monotonic() < deadline, "pages are leaked"
        time.sleep(0.1)


def measure(server: Server, clients: int, seconds: float, seed: int) -> bool:
    """Print what came of it; whether all was well."""
    asked = bodies()
    alone = asyncio.run(ask_alone(server.url, asked))
    warm = asyncio.run(run_load(server.url, asked, alone, clients, after(min(10.0, seconds / 3)), seed))
    memory = Memory(server.ranks())
    memory.start()
    started = time.monotonic()
    load = asyncio.run(run_load(server.url, asked, alone, clients, after(seconds), seed + 1))
    took = time.monotonic() - started
    wait_for_free_pages(server)
    memory.stop()
    wrong = [*warm.wrong, *load.wrong]
    print(
        f"{clients} clients, {took:.0f} s: {load.finished} answers as alone, {load.left} left, {load.refused} refused, "
        f"{len(wrong)} wrong; {load.tokens} tokens of whole answers, no page held"
    )
    growths = []
    for rank, seen in memory.seen.items():
        middle = len(seen) // 2
        growths.append(max(seen[middle:]) - max(seen[:middle]))
        print(f"rank {rank}: {seen[0]:.0f} MiB at first, {seen[-1]:.0f} at last, second half {growths[-1]:+.1f} MiB")
    for one in wrong[:3]:
        print(one[:2000])
    return not wrong and load.finished > clients and max(growths) < MOST_GROWTH_MB


def main() -> None:
    """Exit status 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--backend", default="engine")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    tiny_checkpoint()
    with tempfile.TemporaryDirectory() as folder:
        words = ("job.model_name=openai/gpt-oss-20b", "job.date=null", f"backend={args.backend}")
        server = Server(Path(folder), *words)
        try:
            well = measure(server.wait_until_it_serves(), args.clients, args.seconds, args.seed)
        finally:
            server.close()
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
