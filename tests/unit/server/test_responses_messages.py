from __future__ import annotations

import pytest

from gptoss_dist.server.api_error import ApiError
from gptoss_dist.server.responses_input import items_of
from gptoss_dist.server.responses_messages import messages_of


def rendered(given, instructions: str | None = None) -> list[dict]:
    return [one.message for one in messages_of(instructions, items_of(given, lambda _: None))]


def reasoning(text: str) -> dict:
    return {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}


def call(name: str, arguments: str = "{}", status: str = "completed") -> dict:
    return {"type": "function_call", "call_id": name, "name": name, "arguments": arguments, "status": status}


def result(name: str) -> dict:
    return {"type": "function_call_output", "call_id": name, "output": "ok"}


def said(text: str, phase: str | None = None) -> dict:
    return {"role": "assistant", "content": text, **({"phase": phase} if phase else {})}


def test_one_turn_of_the_assistant_is_one_message():
    given = [reasoning("A"), said("wait", "commentary"), reasoning("B"), call("f"), call("g"), result("f"), result("g")]
    turn, *results = rendered([*given, reasoning("C"), said("done", "final_answer")])
    assert (turn["reasoning_content"], turn["content"]) == ("A\nB", "wait")
    assert [one["id"] for one in turn["tool_calls"]] == ["f", "g"]
    assert [one["role"] for one in results] == ["tool", "tool", "assistant"]
    assert results[-1] == {"role": "assistant", "reasoning_content": "C", "content": "done"}


def test_messages_without_a_phase_stay_apart():
    contents = [one["content"] for one in rendered([said("a"), said("b"), reasoning("r"), said("c"), call("f")])]
    assert contents == ["a", "b", "c"]


def test_instructions_come_first_and_an_empty_reasoning_is_none():
    messages = rendered([reasoning(""), {"role": "user", "content": "x"}], "Be kind.")
    assert [one["role"] for one in messages] == ["developer", "user"]


def test_a_call_that_was_cut_is_left_out_unless_it_is_answered():
    half = call("f", '{"a":', "incomplete")
    assert rendered([half]) == []
    kept = rendered([half, result("f")])
    assert kept[0]["tool_calls"][0]["function"] == {"name": "f", "arguments": '"{\\"a\\":"'}


@pytest.mark.parametrize(
    ("name", "clean"), [("f", "f"), ("wétter", "w_tter"), ("a b", "a_b"), ("", "_"), ("x" * 200, "x" * 128)]
)
def test_a_call_has_a_name_that_can_stand_in_a_header(name, clean):
    (message,) = rendered([call(name)])
    assert message["tool_calls"][0]["function"]["name"] == clean


def test_items_keep_their_ids_and_get_one_where_they_have_none():
    given = [{"role": "user", "content": "x", "id": "mine"}, {"role": "user", "content": "y"}]
    first, second = items_of(given, lambda _: None)
    assert first["id"] == "mine"
    assert second["id"].startswith("msg_")


def test_a_refusal_is_text():
    given = [{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}]
    assert rendered(given)[0]["content"] == "No."


def test_a_reasoning_without_content_is_looked_up():
    known = {**reasoning("stored"), "id": "rs_1", "status": "completed"}
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None}
    assert items_of([item], {"rs_1": known}.get) == [known]
    with pytest.raises(ApiError) as error:
        items_of([{"type": "item_reference", "id": "rs_2"}], {"rs_1": known}.get)
    assert error.value.status_code == 404
