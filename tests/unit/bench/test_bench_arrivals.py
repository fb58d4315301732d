from __future__ import annotations

import math
from itertools import pairwise

import pytest

from gptoss_dist.bench.arrivals import ClosedLoop, OpenLoop, TimedLoop


def test_closed_loop_keeps_its_streams_busy():
    loop = ClosedLoop(requests=5, streams=2)
    assert loop.take(0.0, 0) == [(0, 0.0), (1, 0.0)]
    assert loop.take(1.0, 2) == []
    assert loop.wait(1.0, 2) == math.inf, "one must end first"
    assert loop.wait(1.0, 1) == 0
    assert loop.take(2.0, 1) == [(2, 2.0)]
    assert loop.take(3.0, 0) == [(3, 3.0), (4, 3.0)]
    assert not loop.left
    assert loop.take(4.0, 0) == []
    assert loop.wait(4.0, 0) == math.inf


def test_open_loop_is_poisson_and_counts_from_when_a_request_was_due():
    loop = OpenLoop(requests=4000, rate=50.0, seed=7)
    first = loop.take(0.0, 0)
    assert first == [(0, 0.0)]
    (number, due), *_ = late = loop.take(30.0, 999)
    assert number == 1
    assert 0 < due < 1
    rest = loop.take(1e9, 0)
    times = [due for _, due in first + late + rest]
    assert times == sorted(times)
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.05)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert deviation == pytest.approx(mean, rel=0.08)  # of an exponential distribution
    assert not loop.left
    assert OpenLoop(10, 50.0, 7).wait(0.0, 0) == 0.0


def test_open_loop_waits_for_its_next_and_is_the_same_for_a_seed():
    one, two, other = (OpenLoop(50, 2.0, seed) for seed in (1, 1, 2))
    one.take(0.0, 0)
    assert one.wait(0.0, 9) > 0
    assert one.take(0.0, 0) == []
    due = one.wait(0.0, 9)
    assert one.wait(due - 0.001, 9) == pytest.approx(0.001)
    assert one.wait(due + 1, 9) == 0, "it is late"
    two.take(0.0, 0)
    assert one.take(1e9, 0) == two.take(1e9, 0) != other.take(1e9, 0)[1:]


def test_timed_loop_ends_by_the_clock():
    loop = TimedLoop(streams=3, seconds=10)
    assert [number for number, _ in loop.take(0.0, 0)] == [0, 1, 2]
    assert [number for number, _ in loop.take(9.9, 1)] == [3, 4]
    assert loop.left
    assert (loop.wait(9.9, 3), loop.wait(9.9, 2)) == (math.inf, 0)
    assert loop.take(10.0, 0) == []
    assert not loop.left
    assert loop.wait(10.0, 0) == math.inf
