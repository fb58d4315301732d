"""Answers that call functions, over a scripted engine: the user's words are the calls that it makes, round by round."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import openai.types.chat
import openai.types.responses
import pytest
from batch_work import USER, model_of, run_of

from gptoss_dist.batch.function_files import load_functions
from gptoss_dist.batch.functions import Functions
from gptoss_dist.batch.work import Batch
from gptoss_dist.engine.scripted import Script, ScriptedEngine
from gptoss_dist.harmony.vocab import load_encoding
from gptoss_dist.schema.engine import EngineConf

TOOLS = '''
import time

def add(a: int, b: int) -> int:
    """Add.

    Args:
        a: One.
        b: Other.
    """
    return a + b

def fail() -> str:
    """Fail."""
    raise ValueError("it is broken")

def nap(seconds: float) -> str:
    """Sleep.

    Args:
        seconds: How long.
    """
    time.sleep(seconds)
    return "slept"
'''
CALL = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{}"
OWN_TOOL = {"type": "function", "function": {"name": "mine", "description": "Mine.", "parameters": {"type": "object"}}}


def engine_of() -> ScriptedEngine:
    """Each round of the user's list is said in turn; then the results of the last one."""
    encoding = load_encoding()

    def choose(prompt: tuple[int, ...]) -> Script:
        text = encoding.decode(list(prompt))
        rounds = json.loads(USER.findall(text)[-1])
        results = [
            one.partition("<|end|>")[0] for one in text.split("to=assistant<|channel|>commentary<|message|>")[1:]
        ]
        done = len(results)
        for calls in rounds:
            if done == 0:
                said = "<|end|><|start|>assistant".join(CALL.format(*call) for call in calls) + "<|call|>"
                break
            done -= len(calls)
        else:
            said = f"<|channel|>final<|message|>{'; '.join(results)}<|return|>"
        said = f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant{said}"
        return Script(tuple(encoding.encode(said, allowed_special="all")))

    return ScriptedEngine(choose, EngineConf("test", max_running=8))


@pytest.fixture
def functions(tmp_path: Path) -> Functions:
    (tmp_path / "tools.py").write_text(TOOLS)
    return load_functions(str(tmp_path / "tools.py"))


def answers(functions: Functions, folder: Path, records: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    """Id → line."""
    (folder / "in.jsonl").write_text("\n".join(map(json.dumps, records)))
    output, engine = folder / "out.jsonl", engine_of()
    run = run_of(output, functions="tools.py", **keys)
    batch = Batch(run, engine, model_of(engine), "single", 8, lambda: False, functions)
    content = batch.run([folder / "in.jsonl"], "worker", True)
    assert content["complete"]
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [one["custom_id"] for one in lines] == [one.get("id") or one["custom_id"] for one in records]
    return {one["custom_id"]: one for one in lines} | {"summary": content["functions"]}


def rounds(*calls: list[tuple[str, str]]) -> str:
    return json.dumps(calls)


def test_calls_are_run_and_their_results_told(functions: Functions, tmp_path: Path):
    prompt = rounds([("add", '{"a": 1, "b": 2}'), ("add", '{"a": 3, "b": 4}')], [("fail", "{}")])
    said = answers(functions, tmp_path, [{"id": "a", "prompt": prompt}, {"id": "b", "prompt": "[]"}])
    body = said["a"]["response"]["body"]
    assert body["choices"][0]["message"]["content"] == '3; 7; {"error": "ValueError: it is broken"}'
    assert body["choices"][0]["finish_reason"] == "stop"
    first, *results, second, failure = body["messages"]
    assert [one["function"]["arguments"] for one in first["tool_calls"]] == ['{"a": 1, "b": 2}', '{"a": 3, "b": 4}']
    assert first["reasoning"] == "hm"
    assert [one["content"] for one in results] == ["3", "7"]
    assert [one["tool_call_id"] for one in results] == [one["id"] for one in first["tool_calls"]]
    assert second["tool_calls"][0]["function"]["name"] == "fail"
    assert failure["role"] == "tool"
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 3
    openai.types.chat.ChatCompletion.model_validate(body)
    assert "messages" not in said["b"]["response"]["body"]
    assert said["summary"] == {
        "add": {"calls": 2, "failed": 0},
        "fail": {"calls": 1, "failed": 1},
        "nap": {"calls": 0, "failed": 0},
    }


def test_responses_hold_calls_and_results_as_items(functions: Functions, tmp_path: Path):
    body = {"input": rounds([("add", '{"a": 1, "b": 2}')]), "tool_choice": "required"}
    record = {"custom_id": "r", "method": "POST", "url": "/v1/responses", "body": body}
    response = answers(functions, tmp_path, [record])["r"]["response"]["body"]
    kinds = [one["type"] for one in response["output"]]
    assert kinds == ["reasoning", "function_call", "function_call_output", "reasoning", "message"]
    assert response["output"][2]["output"] == "3"
    assert response["output"][2]["call_id"] == response["output"][1]["call_id"]
    assert response["output"][4]["content"][0]["text"] == "3"
    assert response["tool_choice"] == "required"
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == 2
    openai.types.responses.Response.model_validate(response)


def test_a_demanded_call_is_made_once(functions: Functions, tmp_path: Path):
    named = {"type": "function", "function": {"name": "add"}}
    records = [
        {"id": "required", "prompt": rounds([("add", '{"a":1,"b":2}')]), "tool_choice": "required"},
        {"id": "named", "prompt": rounds([("add", '{"a":1,"b":2}')]), "tool_choice": named},
        {"id": "none", "prompt": "[]", "tool_choice": "none"},
    ]
    said = answers(functions, tmp_path, records)
    for name, content in (("required", "3"), ("named", "3"), ("none", "")):
        assert said[name]["error"] is None, said
        assert said[name]["response"]["body"]["choices"][0]["message"]["content"] == content


def test_a_call_of_the_records_own_tool_is_left_to_its_sender(functions: Functions, tmp_path: Path):
    both = [OWN_TOOL, functions.tools[0]]
    records = [
        {"id": "own", "prompt": rounds([("mine", "{}")]), "tools": [OWN_TOOL]},
        {"id": "mixed", "prompt": rounds([("add", '{"a":1,"b":2}')], [("mine", "{}")]), "tools": both},
        {"id": "other", "prompt": rounds([("nap", '{"seconds": 0}')]), "tools": [functions.tools[0]]},
    ]
    said = answers(functions, tmp_path, records)
    for name in ("own", "mixed"):
        (choice,) = said[name]["response"]["body"]["choices"]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["tool_calls"][0]["function"]["name"] == "mine"
    assert [one["role"] for one in said["mixed"]["response"]["body"]["messages"]] == ["assistant", "tool"]
    assert "no function 'nap'" in said["other"]["response"]["body"]["choices"][0]["message"]["content"]


def test_what_the_model_gets_wrong_is_told_to_it(functions: Functions, tmp_path: Path):
    prompt = rounds([("add", "not JSON")], [("invented", "{}")])
    body = answers(functions, tmp_path, [{"id": "a", "prompt": prompt}])["a"]["response"]["body"]
    content = body["choices"][0]["message"]["content"]
    assert "the arguments do not fit" in content
    assert "there is no function 'invented' here" in content
    assert body["messages"][0]["tool_calls"][0]["function"]["arguments"] == "not JSON"


def test_rounds_end(functions: Functions, tmp_path: Path):
    call = [("add", '{"a":1,"b":2}')]
    records = [{"id": "two", "prompt": rounds(call, call)}, {"id": "three", "prompt": rounds(call, call, call)}]
    said = answers(functions, tmp_path, records, rounds=2)
    assert said["two"]["response"]["body"]["choices"][0]["message"]["content"] == "3; 3"
    assert said["three"]["error"]["code"] == "too_many_rounds"
    assert "job.rounds=2" in said["three"]["error"]["message"]


def test_several_choices_cannot_call(functions: Functions, tmp_path: Path):
    said = answers(functions, tmp_path, [{"id": "n", "prompt": "[]", "n": 2}, {"id": "bad", "messages": [], "n": 1}])
    assert said["n"]["error"]["code"] == "unsupported_value"
    assert said["bad"]["error"]["code"] == "invalid_value"


def test_results_that_exceed_the_context_are_an_error_line(tmp_path: Path):
    long = 'def add() -> str:\n    "Much."\n    return "word " * 50000\n'
    (tmp_path / "tools.py").write_text(long)
    said = answers(load_functions(str(tmp_path / "tools.py")), tmp_path, [{"id": "a", "prompt": '[[["add", "{}"]]]'}])
    assert said["a"]["error"]["code"] == "context_length_exceeded"


def test_others_go_on_while_a_function_runs_and_one_that_takes_too_long_is_given_up(
    functions: Functions, tmp_path: Path
):
    began = time.monotonic()
    records = [{"id": "slow", "prompt": rounds([("nap", '{"seconds": 60}')])}]
    records += [{"id": str(number), "prompt": "[]"} for number in range(20)]
    said = answers(functions, tmp_path, records, function_s=0.5, keep_parts=True)
    content = said["slow"]["response"]["body"]["choices"][0]["message"]["content"]
    assert "took longer than 0.5 s" in content
    assert time.monotonic() - began < 50  # no longer than the function that nobody waits for
    (part,) = (tmp_path / "out.jsonl.parts").glob("part-*")
    assert json.loads(part.read_text().splitlines()[-1])["custom_id"] == "slow"
    assert any(thread.name == "gptoss-nap" and thread.daemon for thread in threading.enumerate())


def test_a_batch_of_other_functions_is_another_batch(functions: Functions, tmp_path: Path):
    answers(functions, tmp_path, [{"id": "a", "prompt": "[]"}])
    with pytest.raises(Exception, match="another configuration"):
        answers(functions, tmp_path, [{"id": "a", "prompt": "[]"}], rounds=3)
