"""What a replica that takes prompts costs one that decodes, and what each costs rank 0.

    torchrun --standalone --nproc-per-node=2 tests/replicas_cost.py [SEQUENCES]

Two replicas of one rank each, of which replica 0 takes a prompt of 2,000 tokens and generates one token, again and
again, while SEQUENCES sequences decode on replica 1. In place of a model and a GPU there is a clock: a step with a
prompt takes the device 90 ms, any other one 3 ms, one after the other and beside the host. So what is measured is what
the engine adds to them. Rank 0 prints a line of JSON: milliseconds between two tokens of a sequence as rank 0 hands
them out, the median, the 99th percentile and the most; steps of replica 1 a second; prompts meanwhile; and microseconds
that rank 0 needs beside its own step to take in what one of replica 1 has given. Then the same without prompts.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator

import torch
from engine_host_cost import NullRunner
from reading_runner import Answers, reading_engine

from gptoss_dist.engine import choice, dispatch
from gptoss_dist.engine.batch import Batch
from gptoss_dist.engine.logits import Logits
from gptoss_dist.engine.paged_engine import PagedEngine
from gptoss_dist.engine.placement import Placement
from gptoss_dist.engine.request import Event, Request, Sampling
from gptoss_dist.engine.size import CacheSize
from gptoss_dist.engine.staging import Readback
from gptoss_dist.launcher.env import read_rank_env
from gptoss_dist.runtime.dist import start
from gptoss_dist.runtime.mesh import make_ranks

PROMPT, TOKENS, CONTEXT = 2000, 1000, 4096
WITH_PROMPTS = "beside prompts"
PROMPT_SECONDS, DECODE_SECONDS = 90e-3, 3e-3


class ClockRunner(NullRunner):
    """Its steps take the device their time, one after the other."""

    free_at = 0.0
    """When the device will have done all that was launched."""

    def run(self, batch: Batch) -> Logits:
        seconds = DECODE_SECONDS if batch.decode_only else PROMPT_SECONDS
        ClockRunner.free_at = max(time.perf_counter(), ClockRunner.free_at) + seconds
        return super().run(batch)

    def close(self) -> None:
        """Nothing to give back."""


class ClockReadback(Readback):
    """Is here when the step before it is done."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        super().__init__(*tensors)
        self._until = ClockRunner.free_at

    def is_here(self) -> bool:
        return time.perf_counter() >= self._until

    def wait(self) -> list[torch.Tensor]:
        time.sleep(max(0.0, self._until - time.perf_counter()))
        return super().wait()


class ByName(Placement):
    """Prompts go to replica 0, all else to replica 1."""

    def place(self, request: Request) -> int:
        wanted = int(not request.id.startswith("prompt"))
        self._work = [10**9, 10**9]
        self._work[wanted] = 0
        return super().place(request)


def prompts(kind: str) -> Iterator[Request]:
    """Requests for one token, like no other: nothing of them is in a cache."""
    for number in itertools.count():
        tokens = tuple(range(number * PROMPT, (number + 1) * PROMPT))
        yield Request(f"prompt {kind} {number}", tokens, Sampling(1, temperature=0))


def load(engine: PagedEngine, sequences: int, kind: str) -> dict[str, object]:
    """What rank 0 sees until all sequences have ended."""
    waiting, watched = prompts(kind), f"{kind} 0"
    moments: list[float] = []
    taken_in: list[float] = []
    under_way, count = sequences, 0
    for number in range(sequences):
        engine.submit(Request(f"{kind} {number}", (number,), Sampling(TOKENS, temperature=0)))
    if kind == WITH_PROMPTS:
        engine.submit(next(waiting))
    gather = engine._gather

    def timed(wait_s: float) -> list[Event]:
        begun = time.perf_counter()
        events = gather(wait_s)
        if events and not wait_s:
            taken_in.append(1e6 * (time.perf_counter() - begun))
        return events

    engine._gather = timed  # type: ignore[method-assign]
    begun = time.perf_counter()
    while under_way:
        for event in engine.step():
            if event.request_id == watched:
                moments += [time.perf_counter()] * len(event.tokens)
            if event.finish is not None and event.request_id.startswith("prompt"):
                count += 1
                engine.submit(next(waiting))
            elif event.finish is not None:
                under_way -= 1
    seconds = time.perf_counter() - begun
    for _ in engine.drain():
        pass
    engine._gather = gather  # type: ignore[method-assign]
    gaps = [1000 * (after - before) for before, after in itertools.pairwise(moments)]
    return {
        "kind": kind,
        "sequences": sequences,
        "handed_out_ms": described(gaps),
        "steps_per_s": round(TOKENS / seconds, 1),
        "prompts": count,
        "taken_in_us": described(taken_in) if taken_in else None,
    }


def described(values: list[float]) -> dict[str, float]:
    values = sorted(values)
    places = {"p50": len(values) // 2, "p99": len(values) * 99 // 100, "most": -1}
    return {name: round(values[place], 2) for name, place in places.items()}


def main() -> None:
    torch.set_num_threads(1)
    sequences = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    choice.Readback = ClockReadback  # type: ignore[misc]
    dispatch.Placement = ByName  # type: ignore[misc]
    group = start("cpu", read_rank_env(os.environ))
    pages = (sequences + 2) * CONTEXT // 16
    engine = reading_engine(
        Answers(window=128),
        CacheSize(pages, pages),
        runner=ClockRunner(sequences + 1),
        group=group,
        ranks=make_ranks(group, dp=2, tp=1),
        vocabulary=2**24,
        context=CONTEXT,
        page_size=16,
        step_tokens=2048,
        max_running=sequences + 1,
    )
    for kind in (WITH_PROMPTS, "alone"):
        if group.rank == 0:
            print(json.dumps(load(engine, sequences, kind)), flush=True)
            engine.release()
            engine.step()
        else:
            engine.follow()
    engine.close()
    group.stop()


if __name__ == "__main__":
    main()
