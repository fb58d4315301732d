"""Answers of a local model, on a scripted engine: how they end, and what Ctrl-C does in a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
import scripted_chat
import yaml
from prompt_toolkit.input import create_input
from prompt_toolkit.input.typeahead import get_typeahead
from pty_programs import end

from gptoss_dist.chat.conversation import Conversation, Turn
from gptoss_dist.chat.interrupts import Interrupts
from gptoss_dist.chat.local import LocalModel

BOOK = [
    {"match": "forever", "text": "on and on " * 900, "delay_s": 0.01},
    {"match": "letter", "text": "word " * 900},
    {"match": "book", "text": "word " * 9000},
    {"match": "think", "harmony": "<|channel|>analysis<|message|>The end? No.<|end|><|start|>assistant<|channel|>final"
    "<|message|>Here is the end. And more.<|return|>"},
    {"match": "stuck", "text": "one", "delay_s": 30},
    {"match": "nothing", "tokens": [200002]},
    {"match": "slow call", "delay_s": 0.01, "harmony": "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant"
    "<|channel|>commentary to=functions.f <|constrain|>json<|message|>" + f'{{"a":"{"on and on " * 900}"}}<|call|>'},
    {"match": "call", "harmony": "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>"},
    {"text": "A short answer."},
]  # fmt: skip


@pytest.fixture
def script(tmp_path: Path) -> str:
    file = tmp_path / "script.yaml"
    file.write_text(yaml.safe_dump(BOOK))
    return str(file)


def answer(script: str, question: str, **generation: object) -> Turn:
    model = LocalModel(scripted_chat.session_of(script, **generation), lambda: False, Interrupts(None))
    conversation, turn = Conversation(), Turn()
    conversation.say(question)
    for piece in model.answer(conversation, turn):
        turn.take(piece)
    return turn


def test_a_stop_text_ends_the_final_text_alone(script: str):
    turn = answer(script, "think", stop=["the end", "End"])
    assert turn.texts == {"analysis": "The end? No.", "final": "Here is "}
    assert turn.finish == "stop"
    held = answer(script, "think", stop=["more, much more"])
    assert held.texts["final"] == "Here is the end. And more."
    assert held.finish == "stop"


def test_how_an_answer_ended(script: str):
    assert answer(script, "hi").finish == "stop"
    assert answer(script, "hi", max_new_tokens=4).finish == "length"
    assert answer(script, "call").finish == "tool_calls"
    assert answer(script, "nothing").message() == {"role": "assistant", "content": ""}


def test_an_answer_goes_on_to_its_end_or_to_that_of_the_context(script: str):
    letter = answer(script, "a letter")
    assert (letter.finish, letter.texts["final"]) == ("stop", "word " * 900)
    book = answer(script, "a book")
    conversation = Conversation()
    conversation.say("a book")
    assert (book.finish, book.tokens) == ("length", scripted_chat.CONTEXT - len(conversation.tokens()))


def test_an_interrupt_ends_the_answer_with_its_next_step(script: str):
    session = scripted_chat.session_of(script)
    ours, theirs = os.openpty()
    with os.fdopen(theirs) as keyboard, os.fdopen(ours, "wb", buffering=0) as typist:
        before = termios.tcgetattr(keyboard)
        interrupts = Interrupts(keyboard)
        model = LocalModel(session, lambda: False, interrupts)
        conversation, turn = Conversation(), Turn()
        conversation.say("forever")
        seen = None
        for piece in model.answer(conversation, turn):
            turn.take(piece)
            if turn.tokens == 10 and seen is None:
                typist.write(b"more\x03")
            if seen is None and interrupts.requested:
                seen = turn.tokens
        assert termios.tcgetattr(keyboard) == before
        kept = "".join(press.data for press in get_typeahead(create_input(keyboard)))
        assert kept == "more"
        assert turn.finish == "cancelled"
        assert seen is not None
        assert turn.tokens <= seen + 1
        assert session.engine.stats().replicas[0].full.held == 0
        conversation.messages.append(turn.message())
        conversation.say("hi")
        assert "".join(piece.text for piece in model.answer(conversation, Turn())) == "A short answer."


@pytest.fixture
def chat(script: str) -> Iterator[pexpect.spawn]:
    environ = {**os.environ, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
    program = [scripted_chat.__file__, script]
    one = pexpect.spawn(sys.executable, program, env=environ, timeout=60, encoding="utf-8", dimensions=(40, 120))
    yield one
    end(one)


def test_ctrl_c_ends_an_answer_and_not_the_chat(chat: pexpect.spawn):
    chat.expect("Ctrl-C ends an answer")
    chat.send("forever\r")
    chat.expect("on and on on and on")
    chat.send("\x03")
    chat.expect(r"Stopped\.")
    chat.send("hi\r")
    chat.expect(r"A short answer\.")
    messages = said_by(chat)
    assert [one["role"] for one in messages] == ["user", "assistant"] * 2
    assert messages[1]["content"].startswith("on and on")


def said_by(chat: pexpect.spawn) -> list[dict[str, Any]]:
    """The messages at the end of the chat."""
    chat.send("/quit\r")
    _, begin, rest = chat.read().rpartition('{"turns"')
    messages: list[dict[str, Any]] = json.loads(begin + rest)["messages"]
    chat.wait()
    assert chat.exitstatus == 0
    return messages


def test_what_is_typed_while_an_answer_comes_is_the_next_line(chat: pexpect.spawn):
    chat.expect("Ctrl-C ends an answer")
    chat.send("forever\r")
    chat.expect("on and on on and on")
    chat.send("h\x03i\r")
    chat.expect(r"Stopped\.")
    chat.expect(r"A short answer\.")
    assert [one["content"] for one in said_by(chat) if one["role"] == "user"] == ["forever", "hi"]


def test_a_second_ctrl_c_is_for_the_program(chat: pexpect.spawn):
    chat.expect("Ctrl-C ends an answer")
    chat.send("stuck\r")
    time.sleep(1)
    chat.send("\x03\x03")
    chat.expect("stopped by SIGINT")
    chat.expect(pexpect.EOF)
    chat.wait()
    assert chat.exitstatus == 130


def test_ctrl_c_where_a_tool_s_result_is_typed_ends_the_turn(chat: pexpect.spawn):
    chat.expect("Ctrl-C ends an answer")
    chat.send("call\r")
    chat.expect("f gives")
    chat.send("half a res\x03")
    chat.expect(r"Stopped\.")
    chat.send("hi\r")
    chat.expect(r"A short answer\.")
    assert said_by(chat) == [
        {"role": "user", "content": "call"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "A short answer."},
    ]


def test_a_call_that_is_broken_off_does_not_stay(chat: pexpect.spawn):
    chat.expect("Ctrl-C ends an answer")
    chat.send("slow call\r")
    chat.expect("→ f")
    chat.expect("and")
    chat.send("\x03")
    chat.expect(r"Stopped\.")
    assert said_by(chat) == [
        {"role": "user", "content": "slow call"},
        {"role": "assistant", "content": None, "reasoning_content": "Look."},
    ]


def test_a_turn_that_fails_keeps_the_rounds_that_were_whole(script: str):
    typed = "call\n" + "word " * 5000 + "\nhi\n"
    command = [sys.executable, scripted_chat.__file__, script]
    done = subprocess.run(command, input=typed, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("error: request turn-") == 2
    question, answer, result = json.loads(done.stdout.splitlines()[-1])["messages"]
    assert (question["content"], answer["tool_calls"][0]["function"]["name"]) == ("call", "f")
    assert result["tool_call_id"] == answer["tool_calls"][0]["id"]


def test_a_signal_while_nothing_is_answered_ends_it_all(chat: pexpect.spawn):
    chat.expect("Ctrl-C ends an answer")
    chat.kill(2)  # not typed: no answer is under way
    chat.expect("stopped by SIGINT")
    chat.expect(pexpect.EOF)
    chat.wait()
    assert chat.exitstatus == 130
