"""What each rank of `test_engine_follow.py` runs: rank 0 serves, the others follow, over replicas of two ranks."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from reading_runner import VOCABULARY, Answers, ReadingRunner, reading_engine

from gptoss_dist.engine.batch import Batch
from gptoss_dist.engine.paged_engine import PagedEngine
from gptoss_dist.engine.request import Event, Request, Sampling
from gptoss_dist.engine.size import CacheSize
from gptoss_dist.engine.work import Work
from gptoss_dist.errors import GptOssDistError, RankError
from gptoss_dist.launcher.env import read_rank_env
from gptoss_dist.runtime.dist import start
from gptoss_dist.runtime.mesh import make_ranks

ANSWERS = Answers(window=6, seed=2)
SIZE = CacheSize(40, 36)
BESIDE = Request("beside it", (6, 7), Sampling(12, frequency_penalty=1.5))


class Fragile(ReadingRunner):
    """Breaks the last row when a request begins with token 63."""

    def run(self, batch: Batch) -> torch.Tensor:
        logits = super().run(batch)
        broken = bool(((batch.ids_T == 63) & (batch.positions_T == 0)).any())
        return torch.cat((logits[:-1], logits[-1:] * math.nan)) if broken else logits


class Deaf:
    """A constraint that allows even tokens, and does not take the third of them."""

    def __init__(self) -> None:
        self.taken = 0

    def start(self, prompt: tuple[int, ...]) -> Deaf:
        return Deaf()

    def allowed(self) -> torch.Tensor:
        return torch.arange(VOCABULARY) % 2 == 0

    def accept(self, token: int) -> None:
        self.taken += 1
        if self.taken == 3:
            raise GptOssDistError("no third token")


def make_requests() -> list[Request]:
    kinds: list[dict[str, object]] = [{}, {"temperature": 0.0}, {"top_p": 0.8}, {"presence_penalty": 1.0}]
    requests = []
    for number in range(24):
        prompt = tuple((number * 7 + place) % 60 for place in range(1 + number % 13))
        sampling = Sampling(3 + number % 20, seed=number, stop_tokens=(11,), **kinds[number % 4])
        requests.append(Request(str(number), prompt, sampling))
    return requests


def generated(engine: PagedEngine) -> list[int]:
    """Tokens of each replica so far."""
    return [one.generated for one in engine.stats().replicas]


def serve(engine: PagedEngine, found: dict[str, object]) -> None:
    """Rank 0: requests in turns, a cancellation, idle steps, the same beginning again."""
    for number, request in enumerate(make_requests()):
        engine.submit(request)
        for _ in range(number % 3):
            engine.step()
        if number == 9:
            engine.cancel("9")
    while engine.has_work:
        engine.step()
    for _ in range(3):
        assert engine.step() == []
    placed, before = [], generated(engine)
    for turn in range(4):
        beginning = tuple(range(20 + turn % 2, 36 + turn % 2))
        engine.submit(Request(f"turn {turn}", (*beginning, turn), Sampling(2)))
        if turn == 1:
            engine.submit(Request("beside", (1,) * 30, Sampling(2)))
        while engine.has_work:
            engine.step()
        placed.append([now - then for now, then in zip(generated(engine), before, strict=True)])
        before = generated(engine)
    found["placed"] = placed
    found["generated"] = generated(engine)
    found["held"] = [one.full.held for one in engine.stats().replicas]
    engine.release()
    engine.step()


def described(events: Iterable[Event]) -> list[list[object]]:
    return [[one.request_id, one.tokens, one.finish.value if one.finish else None] for one in events]


def part_ways(out: str, dp: int, apart: int) -> None:
    """Rank `apart` comes to generate other tokens than the rest of its replica."""
    torch.set_num_threads(1)
    group = start("cpu", read_rank_env(os.environ), timeout=timedelta(seconds=60))
    ranks = make_ranks(group, dp=dp, tp=group.world_size // dp)
    engine = reading_engine(ANSWERS, SIZE, group=group, ranks=ranks)
    compute, steps = engine._compute, itertools.count()

    def others() -> Work:
        events = yield from compute()
        if next(steps) < 5:
            return events
        return [replace(event, tokens=tuple(token ^ 1 for token in event.tokens)) for event in events]

    if group.rank == apart:
        engine._compute = others  # type: ignore[method-assign]
    error = None
    try:
        for _ in engine.stream([Request(str(one), (one,), Sampling(30)) for one in range(4)]):
            pass
    except RankError as raised:
        error = str(raised)
    Path(out, f"{group.rank}.json").write_text(json.dumps(error))
    group.stop()


def lose(out: str, lost: int) -> None:
    """Of two replicas that nobody guards one ends without a word; the other has nothing to do."""
    torch.set_num_threads(1)
    group = start("cpu", read_rank_env(os.environ), timeout=timedelta(seconds=60))
    engine = reading_engine(ANSWERS, SIZE, group=group, ranks=make_ranks(group, dp=2, tp=1))
    if group.rank == lost:
        os._exit(0)
    try:
        while group.rank == 0:
            engine.step()
        engine.follow()
    except RankError as error:
        Path(out, f"{group.rank}.json").write_text(json.dumps(str(error)))
    os._exit(0)  # a goodbye would be waited for


def follow(out: str, dp: int) -> None:
    """Rank 0 serves, the others follow it; then all stream, and see how a replica fails."""
    torch.set_num_threads(1)
    group = start("cpu", read_rank_env(os.environ), timeout=timedelta(seconds=60))
    ranks = make_ranks(group, dp=dp, tp=group.world_size // dp)
    engine = reading_engine(ANSWERS, SIZE, runner=Fragile(ANSWERS, SIZE, 4), group=group, ranks=ranks)
    events: list[Event] = []
    step = engine.step

    def watched() -> list[Event]:
        found = step()
        events.extend(found)
        return found

    found: dict[str, object] = {}
    if group.rank == 0:
        engine.step = watched  # type: ignore[method-assign]
        serve(engine, found)
    else:
        engine.follow()
    found["events"] = described(events)
    deaf = Request("deaf", (5,), Sampling(30, temperature=0), Deaf())
    found["failed"] = described(engine.stream([deaf, BESIDE, replace(BESIDE, id="beside it too")]))
    try:
        for _ in engine.stream([Request("fine", (1,), Sampling(30)), Request("broken", (63,), Sampling(5))]):
            pass
    except GptOssDistError as error:
        found["error"] = str(error)
    Path(out, f"{group.rank}.json").write_text(json.dumps(found))
    group.stop()
