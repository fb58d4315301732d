from __future__ import annotations

import dataclasses
import itertools
import json
import threading
from collections.abc import Callable, Iterator

import pytest

from gptoss_dist.bench.driver import Driver
from gptoss_dist.bench.load import Kind, Row
from gptoss_dist.bench.measure import Bench, does_not_fit, first_token, limit_of, measure
from gptoss_dist.ceilings import ceiling_of
from gptoss_dist.config import compose_run
from gptoss_dist.jobs import bench as bench_job
from gptoss_dist.limits import decode_limit, prefill_limit
from gptoss_dist.session import Session, open_session


@pytest.fixture(scope="module")
def session(make_checkpoint) -> Iterator[Session]:
    words = ["job=bench", "model=tiny", f"model.path={make_checkpoint()}", "plan=single", "cluster.device=cpu"]
    cache = ["backend=engine", "engine.cache_tokens=512", "engine.max_running=4", "engine.step_tokens=64"]
    opened = open_session(compose_run([*words, *cache, "job.warmup_tokens=2"]), None)
    yield opened
    opened.close()


@pytest.fixture
def bench(session) -> Bench:
    return bench_job._bench(session, session.run.job, Driver(session.engine))


ROWS = [
    Row(Kind.decode, 1, 20, 8, 2),
    Row(Kind.decode, 4, 20, 8, 8),
    Row(Kind.decode, 5, 20, 8, 8),
    Row(Kind.decode, 4, 120, 100, 4),
    Row(Kind.prefill, 3, 100, 1, 3),
    Row(Kind.context, 1, 300, 8, 1),
]


def test_every_row_has_a_line_and_its_numbers_agree(bench):
    said: list[str] = []
    results = list(measure(bench, ROWS, lambda: False, said.append))
    assert [one.label for one in results] == [row.label for row in ROWS]
    statuses = [one.status for one in results]
    assert statuses == [
        "done",
        "done",
        "does not fit: 5 streams of a replica, and engine.max_running=4",
        "does not fit: 4 requests of 220 tokens at once, and there is room for 2 of them; raise engine.cache_tokens or "
        "take more ranks",
        "done",
        "does not fit: 300 + 8 tokens, and model or cache take 256",
    ]
    for one in (one for one in results if one.status == "done"):
        assert one.finished == one.requests
        assert one.total_output_tokens == one.requests * one.output_tokens
        assert one.total_input_tokens == one.requests * one.input_tokens
        assert (one.output_tokens_per_s or 0) * (one.wall_s or 0) == pytest.approx(one.total_output_tokens)
        assert one.limit_tokens_per_s is None
    assert results[4].prefill_tokens_per_s == pytest.approx(300 / (results[4].wall_s or 0))
    assert [one.ttft_samples for one in results if one.status == "done"] == [16, 8, 3]
    assert said[0] == "row 1 of 6: 1 stream, 20/8"
    assert not bench.engine.has_work


class Ending:
    """A watch whose run ends when the test says so."""

    def __init__(self) -> None:
        self.stop_requested = threading.Event()
        self.end: Callable[[], None] = lambda: None

    def on_stop(self, callback: Callable[[], None]) -> None:
        self.end = callback


def test_rows_that_are_done_are_shown_though_the_next_one_hangs(bench, session, capsys, monkeypatch):
    watch, steps, step = Ending(), itertools.count(), session.engine.step

    def late_step():
        if next(steps) == 30:
            watch.end()
        return step()

    monkeypatch.setattr(session.engine, "step", late_step)
    job = dataclasses.replace(bench.job, streams=[1, 2], input_tokens=10, output_tokens=10, first_tokens=1)
    assert bench_job._measure_rows(dataclasses.replace(bench, job=job), {}, watch, True) is None
    *lines, last = capsys.readouterr().out.splitlines()
    assert [one["label"] for one in json.loads(last)["rows"]] == ["1 stream, 10/10"]
    assert lines[-1] == "partial: the run was stopped, 1 of 2 rows shown"
    assert sum(line.startswith("| load") for line in lines) == 1


def test_told_to_stop_before_a_row_there_is_no_line_for_it(bench):
    looks = iter([False, True])
    assert len(list(measure(bench, ROWS, lambda: next(looks), lambda _: None))) == 1


def test_the_limit_is_that_of_the_row(bench):
    on_gpu = dataclasses.replace(bench, ceiling=ceiling_of("NVIDIA H200"))
    assert limit_of(on_gpu, ROWS[1]) == decode_limit(bench.placement, on_gpu.ceiling, 4, 24)
    half = dataclasses.replace(on_gpu, placement=dataclasses.replace(bench.placement, dtype="bfloat16"))
    assert limit_of(half, ROWS[4]) == prefill_limit(half.placement, half.ceiling, 3, 100)
    assert limit_of(on_gpu, Row(Kind.decode, 0, 20, 8, 4, 2.0)).tokens_per_s is None


def test_replicas_share_the_streams(bench):
    degrees = dataclasses.replace(bench.placement.degrees, dp=2)
    two = dataclasses.replace(bench, placement=dataclasses.replace(bench.placement, degrees=degrees))
    assert does_not_fit(bench, ROWS[2]) is not None
    assert does_not_fit(two, ROWS[2]) is None


def test_nothing_stops_an_output_and_chance_differs_by_request(bench):
    first, second = bench.sampling(9, 0), bench.sampling(9, 1)
    assert (first.max_tokens, first.stop_tokens, first.temperature) == (9, (), 1.0)
    assert first.seed != second.seed


def test_a_first_token_leaves_the_engine_idle(bench):
    first_token(bench)
    assert not bench.engine.has_work
