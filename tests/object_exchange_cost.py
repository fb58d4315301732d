"""How long ranks take to agree on a small object, through gloo and through shared memory.

    torchrun --standalone --nproc-per-node=2 tests/object_exchange_cost.py [STEPS]

Between two exchanges every rank is busy for a millisecond, as with a step of the engine. Rank 0 prints a line of JSON:
microseconds, median and 99th percentile, of a broadcast and of a gathering; and of ranks that wait, while rank 0 has
something to say once a second, the share of a core and the median delay of a message.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from gptoss_dist.launcher.env import read_rank_env
from gptoss_dist.runtime.dist import RankGroup, start

BUSY_SECONDS = 1e-3
IDLE_STEPS, IDLE_SECONDS = 15, 1.0


def measure(steps: int, exchange: Callable[[], object]) -> dict[str, float]:
    seconds = []
    for _ in range(steps):
        until = time.perf_counter() + BUSY_SECONDS
        while time.perf_counter() < until:
            pass
        begun = time.perf_counter()
        exchange()
        seconds.append(time.perf_counter() - begun)
    seconds.sort()
    return {"p50": round(1e6 * seconds[steps // 2], 1), "p99": round(1e6 * seconds[steps * 99 // 100], 1)}


def wait_idle(group: RankGroup) -> dict[str, float]:
    """What waiting costs the last rank; the clock is one machine's."""
    delays = []
    begun, used = time.perf_counter(), time.process_time()
    for _ in range(IDLE_STEPS):
        if group.rank == 0:
            time.sleep(IDLE_SECONDS)
        sent = group.broadcast_object(time.perf_counter())
        delays.append(time.perf_counter() - sent)
    share = (time.process_time() - used) / (time.perf_counter() - begun)
    delays.sort()
    mine = {"percent_of_a_core": round(100 * share, 2), "delay_p50": round(1e6 * delays[IDLE_STEPS // 2], 1)}
    return group.all_gather_object(mine)[-1]


def main() -> None:
    import os

    group = start("cpu", read_rank_env(os.environ))
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    board, inbox = group.board, ([], [], False)
    found: dict[str, object] = {"unit": "us", "ranks": group.world_size}
    for name, used in (("gloo", None), ("shared memory", board)):
        group.board = used
        found[name] = {
            "broadcast": measure(steps, lambda: group.broadcast_object(inbox)),
            "all_gather": measure(steps, lambda: group.all_gather_object(inbox)),
            "idle": wait_idle(group),
        }
    if group.rank == 0:
        print(json.dumps(found))
    group.stop()


if __name__ == "__main__":
    main()
