"""Every command of the README is run here, unless the text above it says that it needs GPUs, or the hub."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from ports import free_port

ROOT = Path(__file__).resolve().parents[2]
MARK, HUB = "Needs GPUs:", "Needs the hub:"
SERVER, CLIENT = "Runs until stopped:", "While it serves:"
PORT = "8000"
FENCE = re.compile(r"^(?P<before>[^\n]*)\n\n```(?P<language>\w+)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str, mark: str | None = None) -> list[str]:
    """Code blocks under a line that ends with `mark`; without one, those under no mark at all."""
    found = [one for one in FENCE.finditer((ROOT / "README.md").read_text()) if one["language"] == language]
    if mark is not None:
        return [one["code"] for one in found if one["before"].endswith(mark)]
    return [one["code"] for one in found if not one["before"].endswith((MARK, HUB, SERVER, CLIENT))]


def commands(mark: str | None = None) -> list[str]:
    lines = [line.partition("  #")[0].strip() for code in blocks("bash", mark) for line in code.splitlines()]
    return [line for line in lines if line and line != "make test"]  # these tests are what it runs


def words_of(command: str) -> list[str]:
    words = shlex.split(command)
    return [str(Path(sys.prefix) / "bin" / words[0]) if words[0] == "gptoss" else words[0], *words[1:]]


def run(command: list[str], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=560)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_there_is_something_to_run():
    assert "make demo" in commands()
    assert blocks("python")


@pytest.mark.multi
@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_readme_works(command, tmp_path):
    words = words_of(command.replace("=/tmp/", f"={tmp_path}/"))
    if words[0] == "make":  # in this environment instead of a new one
        words[1:1] = [f"VENV={sys.prefix}", "-o", f"{sys.prefix}/.installed"]
    output = run(words, ROOT)
    if command == "make demo":
        shown = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("final: "))
        assert shown in output


@pytest.mark.multi
def test_the_library_example_works_under_torchrun(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(blocks("python")[0])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    assert "I am a toy" in run([*torchrun, str(script)], tmp_path)


@pytest.mark.multi
def test_the_server_of_the_readme_serves_what_is_asked_of_it():
    port = str(free_port())
    (serve,) = commands(SERVER)
    server = subprocess.Popen(words_of(serve.replace(PORT, port)), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        wait_until_ready(f"http://localhost:{port}/ready", server)
        asked = commands(CLIENT)
        assert len(asked) == 2
        for command in asked:
            output = run(words_of(command.replace(PORT, port)), ROOT)
            if command.startswith("curl"):
                assert "The capital of France is Paris." in output
    finally:
        server.terminate()
        _, said = server.communicate(timeout=60)
    assert server.returncode == 143, said


def wait_until_ready(address: str, server: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(address).status_code == 200:
                return
        assert server.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.3)
