from __future__ import annotations

from gptoss_dist.bench.memory import Drift
from gptoss_dist.bench.soak import Tally, lengths, problems, render_soak, report
from gptoss_dist.engine.request import Finish
from gptoss_dist.schema.job.bench import BenchConf

JOB = BenchConf(name="bench", input_tokens=100, output_tokens=50, cancel_share=0.1)


def test_lengths_are_mixed_within_the_job_s_and_a_tenth_is_cancelled():
    drawn = [lengths(JOB, number) for number in range(3000)]
    assert {one.prompt for one in drawn} == set(range(1, 101))
    assert {one.output for one in drawn} == set(range(1, 51))
    cancelled = [one for one in drawn if one.cancel_after is not None]
    assert 0.08 < len(cancelled) / len(drawn) < 0.12
    assert all(1 <= (one.cancel_after or 0) < one.output for one in cancelled)
    assert lengths(JOB, 5) == drawn[5] != lengths(BenchConf(name="bench", seed=1), 5)


def tally(missing: int = 0) -> Tally:
    found = Tally()
    found.sent(0, 0.0, 7, 3)
    found.sent(1, 0.0, 7, 9)
    found.tokens(0, 1.0, 3 - missing)
    found.ended(0, Finish.length)
    found.tokens(1, 2.0, 1)
    found.ended(1, Finish.cancelled)
    return found


def test_a_tally_counts_and_keeps_nothing():
    found = tally()
    assert (found.requests, found.finished, found.cancelled, found.output_tokens, found.wrong) == (2, 1, 1, 4, 0)
    assert found._missing == {}


def test_a_wrong_length_and_growth_fail_the_soak():
    fine = Drift(0, "process", 1000.0, 1010.0, 3.0, grows=False)
    grown = Drift(1, "gpu", 1000.0, 2000.0, 300.0, grows=True)
    assert problems(report(tally(), [fine], 4, 5, whole=True), JOB) == []
    found = report(tally(missing=1), [fine, grown], 4, 5, whole=False)
    assert problems(found, JOB) == [
        "memory of the gpu on rank 1 grows by 300.0 MB a minute, and job.growth_mb_per_min=20 is allowed",
        "1 requests finished with another number of tokens than asked for",
    ]
    unknown = Drift(0, "process", 1000.0, 1200.0, None, grows=False)
    assert problems(report(tally(), [unknown], 2, 0, whole=True), JOB) == []
    assert render_soak(report(tally(), [unknown], 2, 0, whole=True)).splitlines()[1] == (
        "rank 0, memory of the process: 1000 MB, then 1200 MB, too few samples to tell growth: a longer job.soak_s, "
        "or a smaller job.sample_s"
    )
    assert render_soak(report(tally(), [], 2, 0, whole=True)).splitlines()[1].startswith("memory: this machine tells")
    assert render_soak(found).splitlines() == [
        "soak, partial: 2 s, 2 requests, 1 finished, 1 cancelled, 3 tokens (2 a second); 5 preempted, "
        "pages checked 4 times on rank 0",
        "rank 0, memory of the process: 1000 MB, then 1010 MB, +3.0 MB a minute",
        "rank 1, memory of the gpu: 1000 MB, then 2000 MB, +300.0 MB a minute, GROWS",
    ]
