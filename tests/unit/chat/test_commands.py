from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptoss_dist.chat.commands import is_command, message_of, obey
from gptoss_dist.chat.conversation import Conversation
from gptoss_dist.schema.generation import Effort

TOOL = {"type": "function", "function": {"name": "clock", "description": "The time.", "parameters": {}}}


@pytest.fixture
def talk() -> Conversation:
    conversation = Conversation(system="Be brief.")
    conversation.say("One?")
    conversation.messages.append({"role": "assistant", "content": "1"})
    conversation.say("Two?")
    conversation.messages.append({"role": "assistant", "content": "2"})
    return conversation


def test_one_slash_is_a_command_and_two_are_a_message():
    assert is_command("/help")
    assert not is_command("//etc/passwd")
    assert message_of("//etc/passwd") == "/etc/passwd"
    assert message_of("a/b") == "a/b"


def test_help_lists_every_command(talk):
    text = obey("/help", talk).text
    for word in ("effort", "system", "tools", "reset", "retry", "undo", "save", "quit"):
        assert f"/{word}" in text
    assert "There is no /halp. /help" in obey("/halp", talk).text


def test_effort_and_system_reach_the_next_prompt(talk):
    before = talk.tokens()
    assert obey("/effort high", talk).text == "Reasoning effort: high."
    assert talk.effort is Effort.high
    assert talk.tokens() != before
    assert obey("/system Speak French.", talk).text == "Instructions: Speak French."
    assert talk.prompt()[0] == {"role": "system", "content": "Speak French."}
    assert obey("/system", talk).text == "No instructions."
    assert talk.prompt() == talk.messages


def test_a_wrong_effort_changes_nothing(talk):
    assert obey("/effort max", talk).text == "/effort takes one of low, medium, high; it is medium."
    assert talk.effort is Effort.medium


def test_undo_and_retry_take_back_the_last_question(talk):
    assert obey("/undo", talk).text == "Taken back: Two?"
    assert [message["content"] for message in talk.messages] == ["One?", "1"]
    said = obey("/retry", talk)
    assert (said.again, said.text) == ("One?", "")
    assert talk.messages == []
    assert obey("/retry", talk).text == "There is no question to ask again."
    assert obey("/undo", talk).text == "There is no question to take back."


def test_reset_keeps_the_settings(talk):
    obey("/reset", talk)
    assert talk.prompt() == [{"role": "system", "content": "Be brief."}]


def test_tools_come_from_a_file(talk, tmp_path: Path):
    file = tmp_path / "tools.json"
    file.write_text(json.dumps([TOOL]))
    before = talk.tokens()
    assert obey(f"/tools {file}", talk).text == "Tools: clock."
    assert len(talk.tokens()) > len(before)
    assert obey("/tools", talk).text == "Tools: none."
    assert talk.tokens() == before


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read"), ("{", "not JSON"), ("{}", "a list of objects"), ('[{"type": "function"}]', "tools[0]")],
)
def test_wrong_tools_are_named_and_change_nothing(talk, tmp_path: Path, content: str | None, said: str):
    talk.tools = (TOOL,)
    file = tmp_path / "tools.json"
    if content is not None:
        file.write_text(content)
    assert said in obey(f"/tools {file}", talk).text
    assert talk.tools == (TOOL,)


def test_save_writes_what_generate_reads(talk, tmp_path: Path):
    from gptoss_dist.config import compose_run
    from gptoss_dist.jobs.prompt import prompt_tokens

    file = tmp_path / "talk.json"
    talk.say("Three?")
    assert "5 messages" in obey(f"/save {file}", talk).text
    run = compose_run(["job=generate", f"job.messages={file}", "model=tiny"])
    assert prompt_tokens(run, run.job, Path()) == talk.tokens()


def test_a_file_that_cannot_be_written_is_said(talk, tmp_path: Path):
    assert obey(f"/save {tmp_path}", talk).text == f"{tmp_path}: Is a directory"
    assert obey("/save", talk).text == "/save needs a file to write."


def test_quit(talk):
    assert obey("/quit", talk).over
