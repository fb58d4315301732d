"""Every command of the README is run here, unless the text above it says that it needs GPUs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MARK = "Needs GPUs:"
FENCE = re.compile(r"^(?P<before>[^\n]*)\n\n```(?P<language>\w+)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    found = FENCE.finditer((ROOT / "README.md").read_text())
    return [one["code"] for one in found if one["language"] == language and not one["before"].endswith(MARK)]


def commands() -> list[str]:
    lines = [line.partition("  #")[0].strip() for code in blocks("bash") for line in code.splitlines()]
    return [line for line in lines if line and line != "make test"]  # these tests are what it runs


def run(command: list[str], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_there_is_something_to_run():
    assert "make demo" in commands()
    assert blocks("python")


@pytest.mark.multi
@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_readme_works(command):
    words = command.split()
    if words[0] == "make":  # in this environment instead of a new one
        words[1:1] = [f"VENV={sys.prefix}", "-o", f"{sys.prefix}/.installed"]
    output = run([str(Path(sys.prefix) / "bin" / words[0]) if words[0] == "gptoss" else words[0], *words[1:]], ROOT)
    if command == "make demo":
        shown = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("final: "))
        assert shown in output


@pytest.mark.multi
def test_the_library_example_works_under_torchrun(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(blocks("python")[0])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    assert "I am a toy" in run([*torchrun, str(script)], tmp_path)
