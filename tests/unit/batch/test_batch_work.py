"""Whole batches over a scripted engine: what comes out is what went in, once, however often it is cut off."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
from pathlib import Path

import pytest
from batch_work import answer, answers_in, engine_of, expected, write_records

from gptoss_dist.batch.output_files import check_output
from gptoss_dist.batch.summary import text_of
from gptoss_dist.errors import BatchError, ConfigError, GptOssDistError, PromptError
from gptoss_dist.schema.job.batch import BatchOrder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def given(tmp_path: Path) -> Path:
    return write_records(tmp_path / "in.jsonl", 40)


@pytest.mark.parametrize("order", BatchOrder)
@pytest.mark.parametrize("share", [None, 1, 7, 100])
def test_every_record_is_answered_in_the_order_of_the_input(given: Path, output: Path, share, order):
    content = answer([given], output, share=share, order=order)
    assert answers_in(output) == expected(40)
    assert [*answers_in(output)] == [*expected(40)]
    assert content["complete"]
    assert (content["records"], content["answered"], content["errors"]) == (40, 40, {})
    manifest = json.loads(Path(f"{output}.manifest.json").read_text())
    assert manifest["summary"]["records"] == 40
    assert manifest["inputs"][0]["bytes"] == given.stat().st_size
    assert sorted(file.name for file in output.parent.iterdir()) == ["in.jsonl", "out.jsonl", "out.jsonl.manifest.json"]


def test_longest_first_begins_with_the_longest(tmp_path: Path, output: Path):
    sizes = random.Random(3).sample(range(1, 60), 20)
    lines = [json.dumps({"id": str(size), "prompt": "x" * size}) for size in sizes]
    (tmp_path / "in").write_text("\n".join(lines))
    answer([tmp_path / "in"], output, order=BatchOrder.longest_first, share=20, window=1, keep_parts=True)
    (part,) = Path(f"{output}.parts").glob("part-*")
    begun = [int(json.loads(line)["custom_id"]) for line in part.read_text().splitlines()]
    assert begun == sorted(sizes, reverse=True)


def test_poison_becomes_error_lines(tmp_path: Path, output: Path):
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    deep: dict = {}
    for _ in range(300):
        deep = {"properties": {"x": deep}, "type": "object"}
    bad_tool = {"type": "function", "function": {"name": "no name!", "parameters": {}}}
    lines = [
        {"id": "good", "prompt": "hi"},
        {"id": "long", "prompt": "word " * 40_000},
        {"id": "many", "prompt": "hi", "max_tokens": 10**6},
        {"id": "hot", "prompt": "hi", "temperature": 9},
        {"id": "schema", "prompt": "hi", "response_format": schema},
        {"id": "tool", "prompt": "hi", "tools": [bad_tool]},
        {"id": "deep", "prompt": "hi", "tools": [{"type": "function", "function": {"name": "f", "parameters": deep}}]},
        {"id": "role", "messages": [{"role": "nobody", "content": "hi"}]},
        {"id": "image", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"id": "empty", "messages": []},
        {"id": "half", "prompt": "\ud800"},
        {"custom_id": "url", "method": "POST", "url": "/v1/embeddings", "body": {}},
        {"custom_id": "past", "url": "/v1/responses", "body": {"input": "hi", "previous_response_id": "resp_1"}},
        {"id": "good", "prompt": "again"},
        {"id": "last", "prompt": "bye", "stream": True},
    ]
    (tmp_path / "in").write_text("\n".join([*map(json.dumps, lines), "{torn"]))
    content = answer([tmp_path / "in"], output)
    said = answers_in(output)
    assert len(said) == 16
    assert said.pop("good") == "re: hi"
    assert said.pop("last") == "re: bye"
    said.pop("deep")  # within what is allowed, or not: it has its line
    assert content["complete"]
    codes = {"context_length_exceeded", "invalid_value", "invalid_url", "invalid_json", "unsupported_value"}
    assert set(said.values()) <= codes | {"duplicate_id", "invalid_request"}, said
    assert (said["long"], said["many"]) == ("context_length_exceeded",) * 2
    assert (said["url"], said["good#14"], said["16"]) == ("invalid_url", "duplicate_id", "invalid_json")
    assert content["errors"]["context_length_exceeded"] == 2


def test_several_choices_tools_logprobs_and_responses(tmp_path: Path, output: Path):
    lines = [
        {"id": "two", "prompt": "hi", "n": 2, "logprobs": True, "top_logprobs": 1},
        {"custom_id": "r", "url": "/v1/responses", "body": {"input": "hello", "background": True, "store": False}},
        {"id": "stop", "prompt": "ab STOP cd", "stop": "STOP"},
        {"id": "short", "prompt": "many words are cut off here", "max_tokens": 10},
    ]
    (tmp_path / "in").write_text("\n".join(map(json.dumps, lines)))
    content = answer([tmp_path / "in"], output, window=1)
    two, response, stop, short = (json.loads(line)["response"]["body"] for line in output.read_text().splitlines())
    assert [one["message"]["content"] for one in two["choices"]] == ["re: hi"] * 2
    assert all(one["logprobs"]["content"] for one in two["choices"])
    assert two["choices"][0]["message"]["reasoning"] == "hm"
    assert two["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2
    assert response["status"] == "completed"
    assert response["output"][-1]["content"][0]["text"] == "re: hello"
    assert stop["choices"][0]["message"]["content"] == "re: ab "
    assert short["choices"][0]["finish_reason"] == "length"
    assert content["finish_reasons"] == {"stop": 3, "completed": 1, "length": 1}


def stop_after(count: int):
    """A `should_stop` that is true from its `count`-th call on."""
    calls = iter(range(10**9))
    return lambda: next(calls) >= count


@pytest.mark.parametrize("grace_s", [0.0, 20.0])
def test_stops_and_restarts_lose_and_repeat_nothing(given: Path, output: Path, grace_s: float):
    counts = []
    while True:
        content = answer([given], output, should_stop=stop_after(40), grace_s=grace_s, share=4)
        counts.append(content["records"])
        assert ("left  " in text_of(content)) == (not content["complete"])
        if content["complete"]:
            break
        assert not output.exists()
    assert len(counts) > 2
    assert answers_in(output) == expected(40)
    if grace_s:
        assert sum(counts) == 40


def test_a_finished_batch_is_left_as_it_is(given: Path, output: Path):
    answer([given], output)
    before = output.stat()
    content = answer([given], output, engine=engine_of(delay_s=1e9))
    assert content["complete"]
    assert output.stat() == before
    assert text_of(content).startswith("answered     40 of 40 records")


def test_an_output_of_something_else_is_not_touched(given: Path, output: Path, tmp_path: Path):
    output.write_text("precious")
    with pytest.raises(ConfigError, match="is not this batch's"):
        answer([given], output)
    assert output.read_text() == "precious"
    output.unlink()
    answer([given], output)
    with pytest.raises(ConfigError, match="is not this batch's"):
        answer([write_records(tmp_path / "other", 3)], output)


def test_a_batch_that_was_begun_wants_the_same_input(given: Path, output: Path, tmp_path: Path):
    answer([given], output, should_stop=stop_after(20))
    with pytest.raises(ConfigError, match="its input and records differ"):
        answer([write_records(tmp_path / "other", 3)], output)
    with pytest.raises(ConfigError, match="its configuration differ"):
        answer([given], output, date="2025-06-28")


def test_no_record_is_said(tmp_path: Path, output: Path):
    (tmp_path / "in").write_text("\n\n")
    with pytest.raises(PromptError, match="there is no record"):
        answer([tmp_path / "in"], output)


def test_answers_that_got_lost_are_made_again(given: Path, output: Path):
    """As when a machine dies whose disk had not told the truth."""
    answer([given], output, should_stop=stop_after(60), share=2, grace_s=20)
    (part,) = Path(f"{output}.parts").glob("part-*")
    assert list(Path(f"{output}.parts").glob("*.done"))
    part.unlink()
    assert answer([given], output, share=2)["complete"]
    assert answers_in(output) == expected(40)


@pytest.mark.parametrize("seed", range(3))
def test_parts_cut_anywhere_are_answered_again(given: Path, output: Path, seed: int):
    chance = random.Random(seed)
    for _ in range(4):
        answer([given], output, should_stop=stop_after(45), share=4, grace_s=0)
        for part in Path(f"{output}.parts").glob("part-*"):
            os.truncate(part, chance.randrange(part.stat().st_size + 1))
    answer([given], output, share=4)
    assert answers_in(output) == expected(40)


def test_a_record_answered_twice_is_kept_once(given: Path, output: Path):
    answer([given], output, should_stop=stop_after(60), grace_s=20)
    (part,) = Path(f"{output}.parts").glob("part-*")
    shutil.copy(part, part.with_name("part-woken-0.jsonl"))
    with part.with_name("part-woken-1.jsonl").open("w") as foreign:
        foreign.write(json.dumps({"custom_id": "nobody"}) + "\n")
    answer([given], output)
    assert answers_in(output) == expected(40)


def test_what_another_process_has_finished_and_cleared_away_meanwhile_is_complete(given: Path, output: Path):
    """Between two steps of this process the other one answers all, merges, and removes what this one writes to."""
    calls = []

    def should_stop() -> bool:
        calls.append(1)
        if len(calls) == 5:
            shutil.rmtree(f"{output}.parts")
            assert answer([given], output, "other")["complete"]
        return False

    content = answer([given], output, "this", should_stop=should_stop)
    assert (content["complete"], content["records"]) == (True, len(answers_in(output)))
    assert not Path(f"{output}.parts").exists()


def test_an_output_folder_that_vanishes_ends_it(tmp_path: Path):
    given = write_records(tmp_path / "in.jsonl", 3000)
    (tmp_path / "out").mkdir()
    timer = threading.Timer(1.0, shutil.rmtree, (tmp_path / "out",), {"ignore_errors": True})
    timer.start()
    with pytest.raises(GptOssDistError, match="gone"):
        answer([given], tmp_path / "out" / "out.jsonl", engine=engine_of(delay_s=0.01))
    timer.join()


def test_an_output_that_cannot_be_written_is_said_before_anything(tmp_path: Path):
    with pytest.raises(BatchError, match=r"there is no folder .*none\. Make it"):
        check_output(tmp_path / "none" / "out.jsonl")
