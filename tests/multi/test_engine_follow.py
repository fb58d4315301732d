"""Rank 0 serves and the others follow: every rank sees the same events, every request gets what it gets alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from engine_follow_ranks import ANSWERS, BESIDE, SIZE, make_requests
from reading_runner import reading_engine

pytestmark = pytest.mark.multi


def gathered(events: list[tuple[str, list[int], str | None]]) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Outputs and finishes by request."""
    outputs: dict[str, list[int]] = {}
    finishes: dict[str, str] = {}
    for name, tokens, finish in events:
        assert name not in finishes
        outputs.setdefault(name, []).extend(tokens)
        finishes |= {name: finish} if finish else {}
    return outputs, finishes


@pytest.mark.parametrize(("count", "dp"), [(2, 1), (2, 2), (4, 2)])
def test_followers_see_what_rank_0_sees_until_it_releases_them(count, dp, tmp_path):
    program = Path(__file__).with_name("engine_follow_ranks.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    done = subprocess.run(
        [*launch, str(program), str(tmp_path), str(dp)], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(count)]
    for rank in range(count):
        assert found[rank]["events"] == found[0]["events"]
        assert found[rank]["error"].startswith("step "), "what breaks on one replica is told on all"
        assert "request broken: the model's logits for the next token are NaN" in found[rank]["error"]
    assert "request deaf ends, its constraint failed: no third token" in done.stderr
    outputs, finishes = gathered(found[0]["events"])
    for request in make_requests():
        events = list(reading_engine(ANSWERS, SIZE).stream([request]))
        alone = [token for event in events for token in event.tokens]
        if finishes[request.id] == "cancelled":
            assert request.id == "9"
            assert outputs["9"] == alone[: len(outputs["9"])]
        else:
            assert (outputs[request.id], finishes[request.id]) == (alone, events[-1].finish.value)
    assert finishes["9"] == "cancelled"
    assert found[0]["held"] == [0] * dp
    assert sum(found[0]["generated"]) == sum(map(len, outputs.values()))
    if dp == 2:
        assert min(found[0]["generated"]) > 50, "both replicas work"
        first, second, third, fourth = found[0]["placed"]
        assert third == first, "an idle replica that knows the beginning takes it"
        assert sum(second) == 2
        assert sum(fourth) == 1
    outputs, finishes = gathered(found[0]["failed"])
    assert all(rank["failed"] == found[0]["failed"] for rank in found), "it failed on one rank, and all know"
    assert (len(outputs["deaf"]), finishes["deaf"]) == (3, "blocked")
    alone = [token for event in reading_engine(ANSWERS, SIZE).stream([BESIDE]) for token in event.tokens]
    for name in ("beside it", "beside it too"):
        assert (outputs[name], finishes[name]) == (alone, "length")
