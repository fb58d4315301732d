from __future__ import annotations

import json
import logging
import sys
import textwrap
from pathlib import Path

import pytest

from gptoss_dist.batch.function_files import load_functions
from gptoss_dist.batch.functions import Call, Functions
from gptoss_dist.errors import ConfigError

TOOLS = '''
from __future__ import annotations
import asyncio
from pathlib import Path


def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Args:
        a: The one.
        b: The other.
    """
    return a + b


async def later(text: str) -> str:
    """Say it later.

    Args:
        text: What to say.
    """
    await asyncio.sleep(0)
    return text


def broken() -> None:
    """Never works."""
    raise SystemExit("no\\nway")


def path() -> dict:
    """A folder."""
    return {"folder": Path("/tmp"), "half": "\\ud800"}


def _hidden(): ...
'''


@pytest.fixture
def functions(tmp_path: Path) -> Functions:
    (tmp_path / "tools.py").write_text(TOOLS)
    return load_functions(str(tmp_path / "tools.py"))


def said(functions: Functions, name: str, arguments: str = "") -> object:
    outcome = functions.call(Call("1", name, arguments))
    return {"failed": json.loads(outcome.output)["error"]} if outcome.failed else outcome.output


def test_the_model_reads_hints_and_docstrings(functions: Functions):
    assert [one["function"]["name"] for one in functions.tools] == ["add", "later", "broken", "path"]
    assert functions.tools[0] == {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two numbers.",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "description": "The one."},
                    "b": {"type": "integer", "description": "The other."},
                },
                "required": ["a"],
            },
        },
    }


def test_results_are_texts(functions: Functions):
    assert said(functions, "add", '{"a": 2}') == "3"
    assert said(functions, "later", '{"text": "é"}') == "é"
    assert said(functions, "path") == '{"folder": "/tmp", "half": "?"}'


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("add", "{", "the arguments do not fit: Expecting"),
        ("add", "[1]", "the arguments are list"),
        ("add", '{"c": 1}', "missing a required argument: 'a'"),
        ("add", '{"a": 1, "c": 1}', "unexpected keyword argument 'c'"),
        ("add", '{"a": "x"}', "TypeError: can only concatenate"),
        ("broken", "{}", "SystemExit: no way"),
        ("nobody", "{}", "there is no function 'nobody' here."),
    ],
)
def test_what_goes_wrong_is_told_to_the_model(functions: Functions, name: str, arguments: str, message: str):
    answer = said(functions, name, arguments)
    assert isinstance(answer, dict)
    assert message in answer["failed"]


def test_failures_are_counted_and_said_once(functions: Functions, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        part = functions.only(["broken"])
        assert "add" not in part
        for _ in range(3):
            said(part, "broken")
    (line,) = [record.getMessage() for record in caplog.records]
    assert "broken failed, as the model is told: SystemExit: no way" in line
    assert "tools.py:" in line
    assert functions.summary()["broken"] == {"calls": 3, "failed": 3}


def test_a_module_is_found_in_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "batch_functions_of_mine"
    package.mkdir()
    (package / "inner.py").write_text(TOOLS.replace("def _hidden(): ...", '__all__ = ["add"]'))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert [one["function"]["name"] for one in load_functions("batch_functions_of_mine.inner").tools] == ["add"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "import nothing_of_this_name",
            r"ModuleNotFoundError: No module named 'nothing_of_this_name' \(.*tools.py:1\)",
        ),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("open('/none')", "FileNotFoundError"),
        ("x = 1", "there is no function in it"),
        ("from json import dumps", "there is no function in it"),
        ("def f(a: int): ...", "f cannot be described .* no docstring"),
        ('def f(a):\n    "Do."', "missing a type hint"),
        ('def f(a: int):\n    "Do."', "no description for the argument 'a'"),
        ('def é():\n    "Do."', "cannot stand in a header"),
        ("__all__ = ['y']", "__all__ names y"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, content: str, message: str):
    (tmp_path / "tools.py").write_text(textwrap.dedent(content))
    with pytest.raises(ConfigError, match=message) as caught:
        load_functions(str(tmp_path / "tools.py"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["none.py", "no.module.here", "a b", "json.nothing"])
def test_what_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(ConfigError, match="there is no such"):
        load_functions(given)
