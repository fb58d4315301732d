from __future__ import annotations

import bisect
import math
import random

import pytest

from gptoss_dist.server.metrics import Metrics
from gptoss_dist.server.recent import LATENCY_S, SPEED_S, Recent, quantile

BOUNDS = (0.1, 0.2, 0.5, 1.0, 2.0, math.inf)


def buckets_of(values: list[float]) -> list[tuple[float, float]]:
    values = sorted(values)
    return [(bound, float(bisect.bisect_right(values, bound))) for bound in BOUNDS]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99, 1.0])
def test_quantiles_lie_in_the_bucket_of_the_true_ones(share: float):
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(50):
        values = sorted(chance.uniform(0, 2) for _ in range(chance.randrange(1, 400)))
        found = quantile(buckets_of(values), share)
        true = values[max(0, math.ceil(share * len(values)) - 1)]
        place = bisect.bisect_left(BOUNDS, true)
        assert found is not None
        assert (BOUNDS[place - 1] if place else 0.0) <= found <= BOUNDS[place], (values, found, true)


def test_quantiles_of_even_values_are_exact():
    values = [place / 1000 for place in range(1, 2001)]
    assert quantile(buckets_of(values), 0.5) == pytest.approx(1.0)
    assert quantile(buckets_of(values), 0.99) == pytest.approx(1.98)
    assert quantile(buckets_of(values), 0.03) == pytest.approx(0.06)


def test_a_quantile_at_the_bound_of_its_bucket_is_the_bound():
    assert quantile([(0.1, 3.0), (math.inf, 30.0)], 0.1) == 0.1


def test_quantiles_without_observations_and_beyond_the_last_bound():
    assert quantile([], 0.5) is None
    assert quantile(buckets_of([]), 0.5) is None
    assert quantile(buckets_of([30.0, 40.0]), 0.5) == 2.0


def test_speeds_are_of_the_last_seconds():
    metrics = Metrics()
    recent = Recent(metrics.text)
    assert recent.look(0.0).generated is None
    metrics.submitted("a", 50, 0.0)
    for second in range(1, 31):
        metrics.generated("a", 10 * second, float(second))
        rates = recent.look(float(second))
        counted = range(max(1, second - int(SPEED_S) + 1), second + 1)
        assert rates.generated == pytest.approx(sum(10 * one for one in counted) / len(counted))
        assert rates.prompt == pytest.approx(50 / second if second <= SPEED_S else 0.0)


def test_latencies_are_forgotten_after_their_time():
    metrics = Metrics()
    recent = Recent(metrics.text)
    recent.look(0.0)
    for place in range(4):
        metrics.submitted(f"{place}", 1, 0.0)
        metrics.generated(f"{place}", 1, 0.04)
        metrics.generated(f"{place}", 5, 0.04 + 5 * 0.007)
    rates = recent.look(1.0)
    assert (rates.first_token.count, rates.inter_token.count) == (4, 20)
    assert 0.02 <= rates.first_token.p50 <= rates.first_token.p99 <= 0.05
    assert 0.005 <= rates.inter_token.p50 <= rates.inter_token.p99 <= 0.01
    for second in range(2, int(LATENCY_S) + 1):
        assert recent.look(float(second)).first_token.count == 4
    late = recent.look(LATENCY_S + 1.5)
    assert (late.first_token.count, late.first_token.p50, late.inter_token.p99) == (0, None, None)


def test_many_who_look_read_the_metrics_twice_a_second():
    metrics, reads = Metrics(), []

    def read() -> bytes:
        reads.append(1)
        return metrics.text()

    recent = Recent(read)
    for step in range(1000):
        recent.look(step / 100)
    assert 18 <= len(reads) <= 21


def test_nothing_is_made_of_a_long_time_without_a_look():
    metrics = Metrics()
    recent = Recent(metrics.text)
    recent.look(0.0)
    metrics.submitted("a", 5, 1.0)
    metrics.generated("a", 100, 2.0)
    rates = recent.look(1000.0)
    assert (rates.generated, rates.first_token.count) == (None, 0)
