"""`job=bench` on two ranks: numbers that agree with each other, and an end in step when it is stopped."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from plan_ranks import WordRanks

pytestmark = pytest.mark.multi

LENGTHS = ("job.input_tokens=24", "job.output_tokens=12", "job.warmup_tokens=2", "job.first_tokens=4", "--json")


@pytest.fixture(scope="module")
def words(make_checkpoint) -> list[str]:
    return ["bench", "model=tiny", f"model.path={make_checkpoint()}", "cluster.device=cpu", "backend=engine", *LENGTHS]


def test_two_ranks(words, tmp_path: Path):
    rows = ["plan=tp", "job.streams=[1,4]", "job.prefill=[2x64]", "cluster.agree_every=4"]
    ranks = WordRanks([[*words, *rows]] * 2, tmp_path)
    assert ranks.statuses(within_s=120) == [0, 0], ranks.err()
    assert ranks.out(1) == ""
    *lines, last = ranks.out(0).splitlines()
    content = json.loads(last)
    assert (content["plan"]["dp"], content["plan"]["tp"], content["devices"]) == (1, 2, 2)
    assert [one["label"] for one in content["rows"]] == ["1 stream, 24/12", "4 streams, 24/12", "prefill 2x64"]
    for one in content["rows"]:
        assert one["status"] == "done"
        assert one["finished"] == one["requests"]
        assert one["total_output_tokens"] == one["requests"] * one["output_tokens"]
        assert one["output_tokens_per_s"] * one["wall_s"] == pytest.approx(one["total_output_tokens"], rel=1e-4)
        assert 0 < one["ttft_p50_ms"] <= one["ttft_p99_ms"] <= 1e3 * one["wall_s"] + 1e-3  # both are rounded
    single = content["rows"][0]
    seconds = single["requests"] * (single["ttft_p50_ms"] / 1e3 + 11 / single["decode_tokens_per_s"])
    assert 0.2 < seconds / single["wall_s"] < 2  # medians: a slow machine does not take equal steps
    assert sum(line.startswith("| ") for line in lines) == 4


def test_a_soak_on_two_ranks_says_the_memory_of_both(words, tmp_path: Path):
    soak = ["plan=dp_tp", "job.streams=[4]", "job.soak_s=2", "job.sample_s=0.3", "cluster.agree_every=4"]
    ranks = WordRanks([[*words, *soak]] * 2, tmp_path)
    assert ranks.statuses(within_s=120) == [0, 0], ranks.err()
    found = json.loads(ranks.out(0).splitlines()[-1])["soak"]
    assert found["finished"] > 0
    assert found["wrong_lengths"] == 0
    assert [one["rank"] for one in found["memory"]] == [0, 1]
    assert all(one["last_mb"] > 1 for one in found["memory"])


def test_a_terminated_run_prints_what_it_has(words, tmp_path: Path):
    ranks = WordRanks([[*words, "plan=tp", "job.requests=100000"]] * 2, tmp_path)
    deadline = time.monotonic() + 120
    while "row 1 of 1" not in ranks.err() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(ranks.processes[1].pid or 0, signal.SIGTERM)  # whichever rank is told
    assert ranks.statuses(within_s=60) == [143, 143], ranks.err()
    *lines, last = ranks.out(0).splitlines()
    assert "partial: the run was stopped, 1 of 1 rows shown" in lines
    content = json.loads(last)
    assert content["partial"]
    assert content["rows"][0]["status"] == "partial"
