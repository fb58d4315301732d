from __future__ import annotations

import time

import pytest

from gptoss_dist.bench.memory import Drift, Sample, Sampler, drifts, slope


def samples(minutes: int, start_mb: float, per_minute_mb: float, settle_mb: float = 0.0) -> list[Sample]:
    count = minutes * 12
    return [
        Sample(5.0 * i, int(1e6 * (start_mb + per_minute_mb * i / 12 - (settle_mb if i < count / 4 else 0))), None)
        for i in range(count)
    ]


def test_slope_of_a_line():
    assert slope([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]) == 2.0
    assert slope([(0.0, 0.0), (1.0, 3.0), (2.0, 0.0)]) == 0.0
    assert slope([(1.0, 5.0)]) == slope([]) == 0.0


def test_memory_that_grows_fails_and_steady_memory_does_not():
    (grown,) = drifts(3, samples(6, 1000, 50), 20)
    assert (grown.rank, grown.kind, grown.grows) == (3, "process", True)
    assert grown.mb_per_min == pytest.approx(50, rel=0.01)
    assert not drifts(0, samples(6, 1000, 10), 20)[0].grows
    assert not drifts(0, samples(6, 1000, -50), 20)[0].grows


def test_what_settles_in_the_first_third_and_noise_do_not_count():
    assert not drifts(0, samples(6, 1000, 0, settle_mb=900), 20)[0].grows
    (short,) = drifts(0, samples(1, 1000, 60), 20)
    assert short.mb_per_min > 20
    assert not short.grows  # 40 MB in all


def test_a_gpu_is_judged_beside_the_process():
    both = [Sample(one.time, 1000, one.process) for one in samples(6, 5000, 40)]
    assert [(one.kind, one.grows) for one in drifts(0, both, 20)] == [("process", False), ("gpu", True)]


def test_too_few_samples_tell_the_memory_and_no_growth():
    assert drifts(0, [], 20) == []
    assert drifts(0, samples(6, 1, 1)[:1], 20) == [Drift(0, "process", 1.0, 1.0, None, grows=False)]
    early = [Sample(0.0, 10**9, None), Sample(9.0, 3 * 10**9, None)]  # one of them from before it had settled
    assert drifts(0, early, 20) == [Drift(0, "process", 1000.0, 3000.0, None, grows=False)]


def test_a_sampler_looks_once_in_its_time():
    calls = []
    sampler = Sampler(0.05, lambda: calls.append(1))
    sampler()
    sampler()
    assert len(calls) == len(sampler.samples) == 1
    time.sleep(0.06)
    sampler()
    assert len(calls) == len(sampler.samples) == 2
    assert (sampler.samples[0].process or 0) > 1e6


def test_the_end_is_sampled_once():
    sampler = Sampler(1000.0, lambda: None)
    sampler()
    sampler.close()  # of about now there is one
    assert len(sampler.samples) == 1
    sampler._next -= 600  # as if it had been taken 600 s ago
    sampler.close()
    sampler.close()
    assert len(sampler.samples) == 2
    never_stepped = Sampler(1000.0, lambda: None)
    never_stepped.close()
    assert len(never_stepped.samples) == 1
