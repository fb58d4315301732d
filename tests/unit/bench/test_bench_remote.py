"""Against a real HTTP server with known delays; `tests/bench_server.py` says what its models do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from bench_server import FIRST_S, GAP_S, Seen, serving

from gptoss_dist.bench import remote
from gptoss_dist.bench.arrivals import OpenLoop
from gptoss_dist.bench.client import Endpoint
from gptoss_dist.bench.load import rows_of
from gptoss_dist.bench.remote import measure_rows
from gptoss_dist.bench.statistics import RowResult
from gptoss_dist.config import compose_run
from gptoss_dist.errors import ServerError
from gptoss_dist.schema.job.bench import BenchApi, BenchConf

WORDS = ("job.input_tokens=20", "job.output_tokens=8", "job.warmup_tokens=2", "job.first_tokens=1")


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def measured(model: str, *words: str) -> tuple[Endpoint, list[RowResult], Seen]:
    with serving() as (url, seen):
        run = compose_run(["job=bench", f"job.target={url}", f"job.target_model={model}", *WORDS, *words])
        assert isinstance(run.job, BenchConf)
        endpoint, results = asyncio.run(measure_rows(run, rows_of(run.job, None), lambda: False))
    return endpoint, results, seen


def test_the_server_s_delays_are_measured():
    endpoint, results, seen = measured("steady", "job.streams=[1,4]", "job.rounds=3")
    assert endpoint == Endpoint("steady", BenchApi.completions, True, 1.0, 1.0)
    assert [(one.finished, one.errors, one.short, one.status) for one in results] == [
        (3, 0, 0, "done"),
        (12, 0, 0, "done"),
    ]
    for one in results:
        assert one.total_output_tokens == one.requests * 8
        assert one.total_input_tokens == one.requests * 20
        assert (one.ttft_p50_ms or 0) >= 1e3 * FIRST_S
        assert (one.itl_p50_ms or 0) >= 1e3 * GAP_S * 0.9
        assert 0 < (one.decode_tokens_per_s or 0) <= 1.05 / GAP_S
        assert one.output_tokens_per_s == pytest.approx(one.total_output_tokens / (one.wall_s or 0))
        assert (one.wall_s or 0) >= 3 * (FIRST_S + 7 * GAP_S)
        assert one.limit_tokens_per_s is None
    assert seen.most_at_once == 4
    bodies = [body for body in seen.bodies if body["max_tokens"] == 8]
    assert len(bodies) == 15
    assert {(len(body["prompt"]), body["ignore_eos"], body["min_tokens"]) for body in bodies} == {(20, True, 8)}
    assert len({tuple(body["prompt"]) for body in seen.bodies}) == len(seen.bodies)


def test_tokens_count_from_when_the_server_wrote_them():
    _, (one,), seen = measured("shredded", "job.requests=1")
    wrote = seen.written[0][-8:]
    assert one.total_output_tokens == 8
    gaps = 1e3 * (wrote[-1] - wrote[0]) / 7
    assert 1e3 * 7 / (one.decode_tokens_per_s or 1) == pytest.approx(7 * gaps, abs=60)


def test_an_open_loop_does_not_wait_for_answers():
    _, (one,), seen = measured("steady", "job.rate=200", "job.requests=20")
    assert one.finished == 20
    assert seen.most_at_once > 4
    assert one.prefill_tokens_per_s is None


class BusyHost(OpenLoop):
    """Pairs of requests 10 ms apart, on a host that does something else for 30 ms whenever it was to send one."""

    def __init__(self, pairs: int) -> None:
        super().__init__(2 * pairs, 1.0, 0)
        self._times = [0.3 * pair + late for pair in range(pairs) for late in (0.0, 0.01)]

    def take(self, now: float, active: int) -> list[tuple[int, float]]:
        due = super().take(now, active)
        if due:
            time.sleep(0.03)
        return due


def test_a_request_that_is_overdue_is_sent_at_once(monkeypatch):
    monkeypatch.setattr(remote, "arrivals_of", lambda row, seed: BusyHost(row.requests // 2))
    _, _, seen = measured("steady", "job.rate=1", "job.requests=10", "job.output_tokens=1", "job.warmup_tokens=0")
    apart = [seen.written[number + 1][-1] - seen.written[number][-1] for number in range(0, 10, 2)]
    assert min(apart) < 0.06, "the host's 30 ms, and no nap of 50 ms besides"


def test_one_stream_measures_its_first_token_by_more_prompts():
    _, (one, two), seen = measured("steady", "job.streams=[1,2]", "job.rounds=2", "job.first_tokens=5")
    assert (one.requests, one.finished, one.ttft_samples, one.prefill_samples, one.decode_samples) == (2, 2, 5, 5, 2)
    assert (two.ttft_samples, two.prefill_samples, two.decode_samples) == (4, 1, 4)
    assert one.total_output_tokens == 16
    assert [body["max_tokens"] for body in seen.bodies].count(1) == 3
    assert len({tuple(body["prompt"]) for body in seen.bodies}) == len(seen.bodies)


def test_extras_that_a_server_refuses_are_not_sent():
    endpoint, (one,), _ = measured("strict", "job.requests=2")
    assert (endpoint.api, endpoint.forces_length) == (BenchApi.completions, False)
    assert one.finished == 2


def test_without_completions_it_is_the_chat():
    endpoint, (one,), seen = measured("chatty", "job.requests=2")
    assert endpoint.path == "/v1/chat/completions"
    assert (one.finished, one.total_output_tokens, one.total_input_tokens) == (2, 16, 2 * 77)
    assert (one.ttft_p50_ms or 0) >= 1e3 * FIRST_S  # the role alone is no token
    assert len(seen.bodies[-1]["messages"][0]["content"].split()) == 20


def test_short_outputs_are_said():
    _, (one,), _ = measured("early", "job.requests=3")
    assert (one.finished, one.short, one.total_output_tokens) == (3, 3, 12)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("breaking", "/v1/completions: the stream broke off: "),
        ("busy", '/v1/completions: HTTP 503: {"error": {"message": "too many requests"}}'),
        ("failing", 'the stream reports an error: {"error": {"message": "out of memory"}}'),
    ],
)
def test_errors_are_counted_and_are_in_no_number(model, message):
    _, (one,), _ = measured(model, "job.requests=6", "job.streams=[2]")
    assert (one.errors, one.finished, one.total_output_tokens) == (2, 4, 32)
    ((said, count),) = one.messages.items()
    assert said.startswith(message)
    assert count == 2


def test_the_model_is_the_first_of_the_list_and_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    endpoint, _, seen = measured("null", "job.requests=1", "job.input_tokens=3", "job.output_tokens=1")
    assert endpoint.model == "steady"
    assert set(seen.keys) == {"Bearer secret"}


def test_a_locked_server():
    with pytest.raises(ServerError, match=r"HTTP 401 \(the key is read from OPENAI_API_KEY\)"):
        measured("locked")


# ── the program ──────────────────────────────────────────────────────────────────────────────────────────────────────


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-X", "importtime", "-m", "gptoss_dist", "bench", *WORDS, *words, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def test_the_program_prints_a_table_and_one_object_and_imports_no_torch(tmp_path):
    with serving() as (url, _):
        process = start(f"job.target={url}/v1", "job.streams=[1,2]", f"job.plot={tmp_path / 'x.png'}")
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err[-2000:]
    *lines, last = out.splitlines()
    assert lines[0].startswith(f"model: steady; target: {url}/v1; endpoint: /v1/completions; date: ")
    assert (
        "2 rows; warm-up before each row: one request a stream, up to 2 tokens, not counted; (n): of n samples" in lines
    )
    assert any(line.startswith("| 2 streams, 20/8") for line in lines)
    content = json.loads(last)
    assert (content["model"], content["target"], content["partial"]) == ("steady", f"{url}/v1", False)
    assert [one["finished"] for one in content["rows"]] == [2, 4]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert "| gptoss_dist.bench.remote" in err or "gptoss_dist.bench.remote" in err
    assert " torch\n" not in err
    assert " transformers\n" not in err


def test_a_run_with_errors_says_so_and_fails():
    with serving() as (url, _):
        process = start(f"job.target={url}", "job.target_model=busy", "job.requests=3")
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: 1 requests failed, and are not in the numbers." in err
    assert "1 failed" in out
    content = json.loads(out.splitlines()[-1])
    assert (content["failed"], content["rows"][0]["errors"]) == (1, 1)


def test_a_warm_up_that_fails_fails_the_run():
    with serving() as (url, _):
        words = ("job.target_model=busy", "job.streams=[3]", "job.requests=2")
        process = start(f"job.target={url}", *words)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: 1 requests failed" in err
    content = json.loads(out.splitlines()[-1])
    assert (content["failed"], content["rows"][0]["finished"]) == (1, 2)


def test_nobody_there_is_one_message():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start(f"job.target=http://127.0.0.1:{port}")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    said = [line for line in err.splitlines() if not line.startswith("import time:")]
    assert len(said) == 1, said
    assert said[0].startswith(f"error: no answer from http://127.0.0.1:{port}")
    assert said[0].endswith("Is the server up, and job.target right?")


def test_an_interrupted_run_prints_what_it_has():
    with serving() as (url, seen):
        process = start(f"job.target={url}", "job.requests=2000")
        deadline = time.monotonic() + 30
        while len(seen.bodies) < 6 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    *lines, last = out.splitlines()
    assert any(line.startswith("partial: the run was stopped") for line in lines)
    content = json.loads(last)
    assert content["partial"]
    (row,) = content["rows"]
    assert row["status"] == "partial"
    assert 0 < row["finished"] < 2000
    assert row["total_output_tokens"] >= 8 * row["finished"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("job.target=localhost:8000",), "give the server's address"),
        (("job.target=http://localhost:1", "job.soak_s=5"), "job.soak_s"),
        (("job.target=http://localhost:1", "job.streams=[]"), "nothing to measure"),
        (("job.target=http://localhost:1", "job.streams=[]", "job.prefill=[8]", "job.plot=x.png"), "job.plot"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, said):
    process = start(*words)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert said in err
