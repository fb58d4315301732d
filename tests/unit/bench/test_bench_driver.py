"""On real engines over a small random checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from gptoss_dist.bench.arrivals import ClosedLoop, OpenLoop, TimedLoop
from gptoss_dist.bench.driver import Driver
from gptoss_dist.bench.load import prompt
from gptoss_dist.bench.records import Records
from gptoss_dist.bench.soak import Tally
from gptoss_dist.config import compose_run
from gptoss_dist.engine.engine import Engine
from gptoss_dist.engine.request import Request, Sampling
from gptoss_dist.errors import DoesNotFitError
from gptoss_dist.session import open_session


@pytest.fixture(scope="module", params=["transformers", "engine"])
def engine(request, make_checkpoint) -> Iterator[Engine]:
    words = ["model=tiny", f"model.path={make_checkpoint()}", "plan=single", "cluster.device=cpu"]
    cache = ["engine.cache_tokens=512", "engine.max_running=4", "engine.step_tokens=64"]
    session = open_session(compose_run([*words, *cache, f"backend={request.param}"]), None)
    yield session.engine
    session.close()


def make(name: str, number: int, prompt_tokens: int = 10, output: int = 6) -> Request:
    return Request(name, prompt(0, 0, number, prompt_tokens, 512), Sampling(output, temperature=0))


def test_a_closed_loop_runs_every_request_to_its_length(engine):
    records, steps = Records(), count()
    driver = Driver(engine, after_step=lambda: next(steps) and None)
    assert driver.run(ClosedLoop(7, 3), make, records)
    driver.leave()
    assert sorted(records.by_number) == list(range(7))
    for one in records.by_number.values():
        assert (one.finished, one.output_tokens, one.prompt_tokens, one.wanted_tokens) == (True, 6, 10, 6)
        times = [one.due, *(time for time, _ in one.arrivals)]
        assert times == sorted(times)
    assert not engine.has_work
    assert next(steps) >= 12
    active = [(one.due, one.arrivals[-1][0]) for one in records.by_number.values()]
    assert max(sum(due <= time < end for due, end in active) for time, _ in active) <= 3


def test_outputs_are_those_of_the_requests_alone(engine):
    alone: dict[str, list[int]] = {}
    for number in range(4):
        for event in engine.stream([make(f"alone-{number}", number)]):
            alone.setdefault(event.request_id, []).extend(event.tokens)
    together: dict[int, int] = {}

    class Listener(Records):
        def tokens(self, number: int, time: float, count: int) -> None:
            together[number] = together.get(number, 0) + count

    Driver(engine).run(ClosedLoop(4, 4), make, Listener())
    assert together == {number: len(alone[f"alone-{number}"]) for number in range(4)}


def test_an_open_loop_counts_from_when_a_request_was_due(engine):
    records = Records()
    assert Driver(engine).run(OpenLoop(5, 20.0, 3), make, records)
    assert all(one.finished for one in records.by_number.values())
    assert all((one.time_to_first or -1) > 0 for one in records.by_number.values())
    gaps = [one.due for one in records.by_number.values()]
    wanted = [due for _, due in OpenLoop(5, 20.0, 3).take(1e9, 0)]
    assert gaps == wanted


def test_a_request_that_can_never_run_leaves_nothing_behind(engine):
    records, driver = Records(), Driver(engine)
    with pytest.raises(DoesNotFitError):
        driver.run(ClosedLoop(4, 4), lambda name, number: make(name, number, 10 if number < 2 else 300), records)
    assert not engine.has_work
    assert [one.finished for one in records.by_number.values()] == [False, False]
    assert driver.run(ClosedLoop(2, 2), make, again := Records())
    assert all(one.finished for one in again.by_number.values())


def test_told_to_stop_it_cancels_what_is_under_way(engine):
    records, looks = Records(), count()
    driver = Driver(engine, should_stop=lambda: next(looks) >= 4)
    assert not driver.run(ClosedLoop(50, 2), lambda name, number: make(name, number, output=40), records)
    assert not engine.has_work
    assert len(records.by_number) == 2
    assert not any(one.finished for one in records.by_number.values())
    assert all(one.arrivals for one in records.by_number.values())


def test_requests_are_cancelled_after_their_tokens(engine):
    tally = Tally()
    driver = Driver(engine)
    assert driver.run(ClosedLoop(6, 2), make, tally, lambda number: 2 if number % 2 else None)
    assert (tally.finished, tally.cancelled, tally.wrong) == (3, 3, 0)
    assert 3 * 6 + 3 * 2 <= tally.output_tokens < 6 * 6


def test_a_time_ends_a_load(engine):
    tally = Tally()
    assert Driver(engine).run(TimedLoop(2, 2.0), make, tally)
    assert tally.last_s >= 1.9
    assert tally.requests == tally.finished > 2
