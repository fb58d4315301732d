from __future__ import annotations

from pathlib import Path

import pytest
from batch_work import write_records

from gptoss_dist.config import compose_run
from gptoss_dist.errors import ConfigError, GptOssDistError
from gptoss_dist.jobs.batch import check, window_of


@pytest.fixture
def words(tmp_path: Path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    write_records(tmp_path / "in.jsonl", 1)
    return ["job=batch", "job.input=in.jsonl", "job.output=out.jsonl"]


def test_what_works_leaves_nothing_behind(words: list[str], tmp_path: Path):
    check(compose_run(words))
    check(compose_run([*words, "job.input=[in.jsonl]"]))
    check(compose_run([*words, "job.input=*.jsonl"]))
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("job.input=null", "job.input is missing"),
        ("job.output=null", "job.output is missing"),
        ("job.input=none.jsonl", "there is no such file"),
        ("job.output=none/out.jsonl", "there is no folder none"),
        ("job.output=", "job.output is missing"),
        ("job.output=in.jsonl", "is an input too"),
        ("job.output=../{folder}/in.jsonl", "is an input too"),
        ("job.output=.", "is there already"),
        ("job.input=[in.jsonl,../{folder}/in.jsonl]", r"in\.jsonl twice"),
        ("job.rounds=0", r"job\.rounds=0: must be 1"),
        ("job.function_s=0", r"job\.function_s=0"),
        ("job.functions=none.py", "there is no such file"),
        ("job.column=text", "is for Parquet files"),
        ("job.share=0", r"job\.share=0: must be 1"),
        ("job.window=0", r"job\.window=0: must be 1"),
        ("job.stale_s=1", r"job\.stale_s=1"),
        ("job.grace_s=-1", r"job\.grace_s=-1"),
        ("job.worker=a/b", r"job\.worker=a/b: up to 64"),
        ("job.order=random", r"job\.order=random"),
    ],
)
def test_what_cannot_work_is_said(words: list[str], tmp_path: Path, word: str, said: str):
    with pytest.raises(GptOssDistError, match=said):
        check(compose_run([*words, word.replace("{folder}", tmp_path.name)]))


def test_an_output_of_something_else_is_refused_before_loading(words: list[str], tmp_path: Path):
    (tmp_path / "out.jsonl").write_text("precious")
    with pytest.raises(ConfigError, match="is not this batch's"):
        check(compose_run(words))


def test_stdin_does_not_go_on_with_a_batch_of_files(words: list[str], tmp_path: Path):
    (tmp_path / "out.jsonl.parts").mkdir()
    with pytest.raises(ConfigError, match="whose input was no stdin"):
        check(compose_run([*words, "job.input=-"]))


def test_the_window_grows_with_replicas_and_with_what_runs_at_once(words: list[str]):
    batched = compose_run([*words, "backend=engine", "engine.max_running=10"])
    assert (window_of(batched, 1), window_of(batched, 4)) == (16, 61)
    assert window_of(compose_run(words), 2) == 8
