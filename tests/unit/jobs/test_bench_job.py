"""`job=bench` in this process, on a small random checkpoint."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from gptoss_dist.cli import main
from gptoss_dist.config import compose_run
from gptoss_dist.engine.paged_engine import PagedEngine
from gptoss_dist.engine.pages import PageAccountError
from gptoss_dist.engine.request import Event, Finish
from gptoss_dist.engine.scheduler import Scheduler
from gptoss_dist.errors import ConfigError
from gptoss_dist.jobs import bench
from gptoss_dist.jobs.table import needs_ranks

LENGTHS = ("job.input_tokens=16", "job.output_tokens=8", "job.warmup_tokens=2")


@pytest.fixture
def words(make_checkpoint, monkeypatch) -> list[str]:
    for name in [name for name in os.environ if name.startswith(("RANK", "WORLD_SIZE", "LOCAL_", "SLURM_", "MASTER_"))]:
        monkeypatch.delenv(name)
    path = f"model.path={make_checkpoint()}"
    return ["bench", "model=tiny", path, "plan=single", "backend=engine", "cluster.device=cpu", *LENGTHS]


def test_table_plot_and_one_object(words, tmp_path: Path, capsys):
    plot = tmp_path / "latency.png"
    rows = ["job.streams=[1,2]", "job.prefill=[32,2x16]", "job.contexts=[100]", "job.context_output_tokens=4"]
    assert main([*words, *rows, f"job.plot={plot}", "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    content = json.loads(last)
    labels = [one["label"] for one in content["rows"]]
    assert labels == [
        *("1 stream, 16/8", "2 streams, 16/8", "prefill 1x32", "prefill 2x16"),
        *("context 1024/4", "context 100/4"),
    ]
    for label in labels:
        assert any(line.startswith(f"| {label} ") for line in lines), label
    assert "context 1024/4: does not fit: 1024 + 4 tokens, and model or cache take 256" in lines
    assert f"plot: {plot}" in lines
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "limit: no ceilings are known for this device" in lines
    for key in ("device", "model", "plan", "backend", "kernels", "command", "date", "versions", "ready", "sampling"):
        assert content[key], key
    assert content["device"].startswith("CPU")
    assert 0 < content["ready"]["process_s"] <= content["ready"]["first_token_s"]
    assert (content["partial"], content["failed"]) == (False, 0)
    samples = {one["label"]: one["ttft_samples"] for one in content["rows"]}
    assert samples == dict(zip(labels, (16, 4, 16, 2, 0, 1), strict=True))
    assert next(line for line in lines if line.startswith("| prefill 1x32 ")).count(" (16) |") == 2


@pytest.mark.parametrize("at_first", [True, False], ids=["warm-up", "row"])
def test_requests_that_fail_fail_the_run_and_stand_in_its_last_line(words, at_first, capsys, monkeypatch):
    step = PagedEngine.step

    def blocked(engine: PagedEngine) -> list[Event]:
        """The second of the two requests that run at once, of the warm-up or of the row, is allowed no token."""
        name = f"bench-{2 if at_first else 3}-1"
        return [
            dataclasses.replace(one, finish=Finish.blocked) if one.request_id == name else one for one in step(engine)
        ]

    monkeypatch.setattr(PagedEngine, "step", blocked)
    with pytest.raises(SystemExit) as ended:
        main([*words, "job.streams=[2]", "--json"])
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert "error: 1 requests failed, and are not in the numbers." in err
    content = json.loads(out.splitlines()[-1])
    assert content["failed"] == content["rows"][0]["errors"] == 1
    assert content["rows"][0]["finished"] == (4 if at_first else 3)


def test_without_json_the_table_is_the_end(words, capsys):
    assert main([*words, "backend=transformers", "job.warmup_tokens=0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1 row; no warm-up: the first requests pay for it; (n): of n samples" in lines
    assert lines[-1] == "limit: no ceilings are known for this device"


def test_a_soak_checks_pages_and_memory(words, capsys):
    soak = ["job.soak_s=1.5", "job.sample_s=0.2", "job.streams=[4]", "job.cancel_share=0.4", "engine.cache_tokens=64"]
    assert main([*words, *soak, "engine.max_running=4", "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)["soak"]
    assert found["status"] == "done"
    assert found["seconds"] >= 1.4
    assert found["requests"] == found["finished"] + found["cancelled"]
    assert found["cancelled"] > 0
    assert found["wrong_lengths"] == 0
    assert found["preemptions"] >= 0
    assert found["page_checks"] >= 2  # of the first step and of the end, however slow the machine is
    assert found["output_tokens"] / found["seconds"] == pytest.approx(found["output_tokens_per_s"], rel=0.01)
    assert found["memory"][0]["kind"] == "process"
    assert any(line.startswith("rank 0, memory of the process: ") for line in lines)


def test_a_soak_with_one_sample_of_its_steps_says_the_memory_and_judges_nothing(words, capsys):
    assert main([*words, "job.soak_s=0.5", "job.sample_s=1000", "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    (found,) = json.loads(last)["soak"]["memory"]
    assert found["first_mb"] > 1
    assert (found["mb_per_min"], found["grows"]) == (None, False)
    assert any("too few samples to tell growth" in line for line in lines)


def test_growing_memory_fails_a_soak(words, capsys, monkeypatch):
    kept: list[bytes] = []
    monkeypatch.setattr(Scheduler, "check", lambda _: kept.append(b"x" * 100_000_000))
    with pytest.raises(SystemExit) as ended:
        main([*words, "job.soak_s=2", "job.sample_s=0.2", "--json"])
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert "error: the soak failed: memory of the process on rank 0 grows by " in err
    assert json.loads(out.splitlines()[-1])["soak"]["memory"][0]["grows"] is True


def test_a_wrong_account_of_pages_ends_a_soak(words, capsys, monkeypatch):
    def wrong(_: Scheduler) -> None:
        raise PageAccountError("page 7 is in 2 states")

    monkeypatch.setattr(Scheduler, "check", wrong)
    with pytest.raises(SystemExit) as ended:
        main([*words, "job.soak_s=20", "job.sample_s=0.2"])
    assert ended.value.code == 1
    assert "PageAccountError: page 7 is in 2 states" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["job.streams=[0]"], "job.streams=[0]"),
        (["job.prefill=[8k]"], "job.prefill=8k"),
        (["job.target_model=m"], "job.target_model"),
        (["job.target=ftp://x"], "job.target=ftp://x"),
        (["job.target=http://x", "job.soak_s=3"], "job.soak_s"),
        (["job.plot=x.jpg"], "job.plot=x.jpg"),
        (["job.plot=x.png", "job.soak_s=3"], "job.plot"),
        (["job.plot=x.png", "job.streams=[]", "job.prefill=[8]"], "job.plot"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(keys, said):
    with pytest.raises(ConfigError) as error:
        bench.check(compose_run(["job=bench", *keys]))
    assert said in str(error.value)


def test_a_soak_longer_than_the_cache_is_refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*words, "job.soak_s=3", "job.input_tokens=250"])
    assert ended.value.code == 2
    assert "job.input_tokens=250 and job.output_tokens=8: model or cache take 256 tokens" in capsys.readouterr().err


def test_a_server_needs_no_ranks():
    assert needs_ranks(compose_run(["job=bench"]))
    assert not needs_ranks(compose_run(["job=bench", "job.target=http://localhost:1"]))


def test_every_key_is_in_the_file_with_its_default():
    run = compose_run(["job=bench"])
    assert dataclasses.asdict(run.job) | {"streams": [1]} == {
        **dataclasses.asdict(type(run.job)(name="bench")),
        "streams": [1],
        "prefill": (),
        "contexts": (),
    }
