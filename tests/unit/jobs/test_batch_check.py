from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
from batch_work import engine_of, model_of, write_records

from gptoss_dist.batch.work import Batch
from gptoss_dist.config import compose_run
from gptoss_dist.errors import ConfigError, GptOssDistError, PromptError
from gptoss_dist.jobs.batch import answer_all, before_loading, check, window_of
from gptoss_dist.runtime.watch import guard
from gptoss_dist.schema.run import Backend, RunConf


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


@pytest.mark.parametrize("name", ["frägen 1.jsonl", "a, b.jsonl", "{x}=1.jsonl", "it's.jsonl", "früh*.jsonl"])
def test_an_input_may_have_any_name(words: list[str], tmp_path: Path, name: str):
    write_records(tmp_path / name, 1)
    check(compose_run([*words, f"job.input={name}"]))


def test_an_input_without_one_record_that_can_be_answered_is_refused(words: list[str], tmp_path: Path):
    (tmp_path / "in.jsonl").write_text("# A title\n\nnot JSON\n")
    with pytest.raises(PromptError, match=r"not one of 2 records can be answered. The first: .*in.jsonl:1: .*not JSON"):
        before_loading(compose_run(words))
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write('{"prompt": "Hi"}\n')
    assert before_loading(compose_run(words)) is None


def run_and_finish(words: list[str], *paths: Path) -> RunConf:
    """The batch of these words, answered by a scripted engine."""
    run, engine = compose_run(words), engine_of()
    content = Batch(run, engine, model_of(engine), "single", 8, lambda: False).run(paths, "worker", True)
    assert content["complete"]
    return run


def test_a_batch_that_is_over_is_known_without_a_model(words: list[str], tmp_path: Path):
    assert before_loading(compose_run(words)) is None
    run = run_and_finish(words, tmp_path / "in.jsonl")
    content = before_loading(run)
    assert content is not None
    assert (content["complete"], content["records"], content["output"]) == (True, 1, "out.jsonl")
    with pytest.raises(ConfigError, match="the answers of another configuration"):
        before_loading(compose_run([*words, "generation=greedy"]))
    write_records(tmp_path / "in.jsonl", 2)
    with pytest.raises(ConfigError, match="is not this batch's"):
        before_loading(run)


def test_standard_input_of_another_batch_is_refused_and_not_kept(words: list[str], tmp_path: Path, monkeypatch):
    words = [*words, "job.input=-"]
    own = (tmp_path / "in.jsonl").read_bytes()
    run = run_and_finish(words, tmp_path / "in.jsonl")
    for typed, is_over in ((b'{"prompt": "another"}\n', False), (own, True)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
        if is_over:
            assert before_loading(run) is not None
        else:
            with pytest.raises(ConfigError, match="is not this batch's"):
                before_loading(run)
        assert not (tmp_path / "out.jsonl.stdin").exists()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (b"", "there is no record in in.jsonl"),
        (b"\n \r\n", "there is no record in in.jsonl"),
        (b'{"id": "2", "prompt": "a"}\n{"prompt": "b"}\n', "Give every record an id, or none"),
    ],
)
def test_an_input_of_which_no_batch_can_be_made_is_refused_before_loading(words, tmp_path: Path, lines, said):
    (tmp_path / "in.jsonl").write_bytes(lines)
    with pytest.raises(PromptError, match=said):
        before_loading(compose_run(words))


def test_a_pipe_by_its_path_is_refused_with_the_way_to_read_it(words: list[str], tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(PromptError, match="is a pipe or a device, which gives its lines once"):
        check(compose_run([*words, "job.input=pipe.jsonl"]))


@pytest.mark.parametrize("typed", [b"", b'{"id": "2", "prompt": "a"}\n{"prompt": "b"}\n'])
def test_standard_input_that_was_refused_is_not_the_next_starts(words, tmp_path: Path, monkeypatch, typed: bytes):
    run, engine, watch = compose_run([*words, "job.input=-"]), engine_of(), guard(None)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
    with pytest.raises(PromptError):
        answer_all(run, engine, model_of(engine), "single", 8, watch)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"id": "r", "prompt": "right"}\n')))
    assert answer_all(run, engine, model_of(engine), "single", 8, watch)["answered"] == 1


def test_standard_input_of_a_batch_under_way_is_kept(words: list[str], tmp_path: Path, monkeypatch):
    run, engine, watch = compose_run([*words, "job.input=-"]), engine_of(), guard(None)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"id": "r", "prompt": "x"}\n')))
    watch.stop_requested.set()
    assert not answer_all(run, engine, model_of(engine), "single", 8, watch)["complete"]
    other = compose_run([*words, "job.input=-", "generation=greedy"])
    with pytest.raises(ConfigError):
        answer_all(other, engine, model_of(engine), "single", 8, watch)
    assert (tmp_path / "out.jsonl.stdin").read_bytes() == b'{"id": "r", "prompt": "x"}\n'


def test_an_output_of_something_else_is_refused_before_loading(words: list[str], tmp_path: Path):
    (tmp_path / "out.jsonl").write_text("precious")
    with pytest.raises(ConfigError, match="is not this batch's"):
        check(compose_run(words))


def test_stdin_does_not_go_on_with_a_batch_of_files(words: list[str], tmp_path: Path):
    (tmp_path / "out.jsonl.parts").mkdir()
    with pytest.raises(ConfigError, match="whose input was no stdin"):
        check(compose_run([*words, "job.input=-"]))


def test_the_window_grows_with_replicas_and_with_what_runs_at_once(words: list[str]):
    run = compose_run([*words, "engine.max_running=10"])
    assert (window_of(run, Backend.engine, 1), window_of(run, Backend.engine, 4)) == (16, 61)
    assert window_of(run, Backend.transformers, 2) == 8
