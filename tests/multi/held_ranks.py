"""What each rank of `test_replicas_apart.py` runs: two replicas of the toy, of which one is held up in a step."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gptoss_dist.config import compose_run
from gptoss_dist.engine.engine import Engine
from gptoss_dist.engine.request import Event, Request, Sampling
from gptoss_dist.engine.work import Work
from gptoss_dist.launcher.env import read_rank_env
from gptoss_dist.model.tiny_conversations import CONVERSATIONS
from gptoss_dist.session import open_session

WORDS = ("model=tiny", "backend=engine", "cluster.device=cpu", "plan=dp_tp", "plan.dp=2", "cluster.agree_every=4")
FIRST, HELD, *QUICK = CONVERSATIONS


def request_of(one: Any) -> Request:
    sampling = Sampling(max_tokens=80, temperature=0, stop_tokens=(200002, 200012))
    return Request(one.name, tuple(one.example()[0]), sampling)


def answer(engine: Engine, name: str) -> Iterator[Event]:
    """Step until a request is finished; all events on the way."""
    while True:
        events = engine.step()
        yield from events
        if any(event.request_id == name and event.finish is not None for event in events):
            return


def hold_up(engine: Any, gate: Path) -> None:
    """From its third step on the engine waits until somebody opens the gate."""
    compute = engine._compute

    def waits() -> Work:
        if engine._steps == 3:
            gate.read_text()  # a pipe: until somebody has written to it
        return compute()

    engine._compute = waits


def serve(engine: Engine, gate: Path) -> dict[str, object]:
    """Rank 0: every conversation is answered, all but two of them while the other replica is held up."""
    outputs: dict[str, list[int]] = {}

    def take(events: Iterator[Event]) -> None:
        for event in events:
            outputs.setdefault(event.request_id, []).extend(event.tokens)

    engine.submit(request_of(FIRST))
    engine.submit(request_of(HELD))
    take(answer(engine, FIRST.name))
    for one in QUICK:
        engine.submit(request_of(one))
        take(answer(engine, one.name))
    before = {name: list(tokens) for name, tokens in outputs.items()}
    generated = [one.generated for one in engine.stats().replicas]
    gate.write_text("go on")
    take(engine.stream([]))
    return {"before": before, "after": outputs, "generated": generated}


def hold(out: str, gate: str, tp: int) -> None:
    torch.set_num_threads(1)
    session = open_session(compose_run([*WORDS, f"plan.tp={tp}"]), read_rank_env(os.environ))
    rank = session.group.rank
    if rank == tp:
        hold_up(session.engine, Path(gate))
    if rank == 0:
        Path(out).write_text(json.dumps(serve(session.engine, Path(gate))))
    else:
        session.engine.follow()
    session.close()
