"""Rank 0 serves and the others follow: every request gets what it gets alone, on whichever replica."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from engine_follow_ranks import ANSWERS, BESIDE, SIZE, follow, lose, make_requests, part_ways
from reading_runner import reading_engine
from runtime_ranks import Lone, Ranks

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


def of_ranks(count: int, tmp_path: Path, body: Lone) -> tuple[list[Any], str]:
    """What each of `count` ranks left, and what they said."""
    ranks = Ranks(count, None, tmp_path, unwatched=body)
    assert ranks.statuses(within_s=200) == [0] * count, ranks.printed()
    return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(count)], ranks.printed()


@pytest.mark.parametrize(("count", "dp"), [(2, 1), (2, 2), (4, 2)])
def test_rank_0_sees_all_events_and_the_others_follow_until_it_releases_them(count, dp, tmp_path):
    found, said = of_ranks(count, tmp_path, partial(follow, str(tmp_path), dp))
    for rank in range(count):
        assert rank == 0 or found[rank]["events"] == found[rank]["failed"] == []
        assert found[rank]["error"].startswith("step "), "what breaks on one replica is told on all"
        assert "request broken: the model's logits for the next token are NaN" in found[rank]["error"]
    assert "request deaf ends, its constraint failed: no third token" in said
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
        assert second == [2, 2], "two that begin differently are shared"
        assert sum(fourth) == 2
    outputs, finishes = gathered(found[0]["failed"])
    assert (len(outputs["deaf"]), finishes["deaf"]) == (3, "blocked")
    alone = [token for event in reading_engine(ANSWERS, SIZE).stream([BESIDE]) for token in event.tokens]
    for name in ("beside it", "beside it too"):
        assert (outputs[name], finishes[name]) == (alone, "length")


@pytest.mark.parametrize(("count", "dp", "apart"), [(2, 1, 1), (4, 2, 3), (4, 2, 2)])
def test_a_rank_that_parts_from_its_replica_is_named_on_all(count, dp, apart, tmp_path):
    for error in of_ranks(count, tmp_path, partial(part_ways, str(tmp_path), dp, apart))[0]:
        assert error.startswith(f"ranks generate different tokens: rank {count - 1} has "), (
            "in a tie the first is right"
        )
        assert f"; rank {count - 2} has " in error


@pytest.mark.parametrize("lost", [0, 1])
def test_idle_replicas_notice_that_another_one_is_gone(lost, tmp_path):
    ranks = Ranks(2, None, tmp_path, unwatched=partial(lose, str(tmp_path), lost))
    assert ranks.statuses(within_s=120) == [0, 0], ranks.printed()
    said = json.loads((tmp_path / f"{1 - lost}.json").read_text())
    assert said.startswith(f"rank {lost} has ended, and rank {1 - lost} works with it: ")


def test_replicas_are_not_compared_with_each_other(tmp_path):
    assert of_ranks(2, tmp_path, partial(part_ways, str(tmp_path), 2, 1))[0] == [None, None]
