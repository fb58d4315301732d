"""The terminal chat on a real terminal, and through pipes: typed into as a person would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
from pty_programs import end

pytestmark = pytest.mark.multi

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "gptoss_dist"]
TORCHRUN = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node=2", "launch/main.py"]
WORDS = ["chat", "model=tiny", "cluster.device=cpu", "generation=greedy"]


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[object]:
    chats: list[pexpect.spawn] = []

    def start(command: list[str]) -> pexpect.spawn:
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
        chat = pexpect.spawn(
            command[0], command[1:], cwd=ROOT, env=environ, timeout=120, encoding="utf-8", dimensions=(40, 120)
        )
        chat.logfile_read = (tmp_path / f"terminal-{len(chats)}").open("w")
        chats.append(chat)
        return chat

    yield start
    for chat in chats:
        end(chat)
        chat.logfile_read.close()


@pytest.mark.parametrize(
    "command", [[*PROGRAM, *WORDS], [*TORCHRUN, *WORDS, "plan=tp"]], ids=["alone", "torchrun, two ranks"]
)
def test_a_conversation_in_a_terminal(talk, command: list[str]):
    chat = talk(command)
    chat.expect("/help lists commands")
    chat.send("What is the capital of France?\r")
    chat.expect("fact")
    chat.expect("The capital of France is Paris")
    chat.send("/effort high\r")
    chat.expect("Reasoning effort: high")
    chat.send("/reset\r")
    chat.expect("A new conversation")
    chat.send("What is \x1b\r2 + 2?")  # Alt-Enter: a second line
    chat.expect("…")
    chat.send("\x03")  # Ctrl-C takes back what is typed
    chat.send("What is 2 + 2?\r")
    chat.expect(r"2 \+ 2 = 4")
    chat.expect_exact("\x1b[?2004h")  # the next prompt: a terminal keeps no Ctrl-D that comes before it
    chat.send("\x04")  # Ctrl-D
    chat.expect(pexpect.EOF)
    chat.wait()
    assert chat.exitstatus == 0


def test_ctrl_c_ends_an_answer_on_all_ranks_and_not_the_chat(talk, random_toy: Path):
    words = ["chat", f"model.path={random_toy}", "cluster.device=cpu", "generation=greedy", "plan=tp"]
    chat = talk([*TORCHRUN, *words])
    chat.expect("/help lists commands")
    for question in ("One", "Two"):
        chat.expect_exact("\x1b[?2004h")
        chat.send(f"{question}\r")
        time.sleep(3)  # it goes on and on
        chat.send("\x03")
        chat.expect(r"Stopped\.")
    chat.send("/undo\r")
    chat.expect("Taken back: Two")
    chat.send("/quit\r")
    chat.expect(pexpect.EOF)
    chat.wait()
    assert chat.exitstatus == 0


def test_a_stop_text_ends_an_answer_here_as_behind_a_server():
    command = [*PROGRAM, *WORDS, "generation.stop=[Paris]", "--json"]
    done = subprocess.run(
        command,
        input="What is the capital of France?\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=ROOT,
    )
    (_, answer) = json.loads(done.stdout.splitlines()[-1])["messages"]
    assert answer["content"] == "The capital of France is "
    assert "Paris" not in done.stdout


def test_a_tools_result_is_asked_for_and_answered(tmp_path: Path):
    from gptoss_dist.model.tiny_conversations import WEATHER_TOOL

    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([WEATHER_TOOL]))
    typed = 'What is the weather like in SF?\n{"sky":"sunny","celsius":20}\n'
    command = [*PROGRAM, *WORDS, f"job.tools={tools}", "--json"]
    done = subprocess.run(command, input=typed, capture_output=True, text=True, timeout=120, check=True, cwd=ROOT)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["turns"] == 2
    roles = [message["role"] for message in said["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant"]
    call = said["messages"][1]["tool_calls"][0]
    assert call["function"] == {"name": "get_weather", "arguments": '{"city":"San Francisco"}'}
    assert said["messages"][2]["tool_call_id"] == call["id"]
    assert said["messages"][3]["content"] == "It is sunny in San Francisco, at 20 degrees Celsius."
    assert said["completion_tokens"] > 20


def test_an_answer_that_cannot_be_made_is_said_and_the_chat_goes_on():
    typed = "word " * 5000 + "\n/undo\nWhat is 2 + 2?\n"
    done = subprocess.run(
        [*PROGRAM, *WORDS], input=typed, capture_output=True, text=True, timeout=120, check=True, cwd=ROOT
    )
    assert "context is 4096" in done.stdout
    assert "There is no question to take back" in done.stdout
    assert "final: 2 + 2 = 4." in done.stdout
    assert "Traceback" not in done.stderr


def test_a_server_that_is_not_there_is_one_line():
    command = [*PROGRAM, "chat", "job.target=http://127.0.0.1:9"]
    done = subprocess.run(command, input="", capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith("error: http://127.0.0.1:9: ")
    assert "Traceback" not in done.stderr
