"""What is on a terminal, and what has scrolled out of it, after Markdown came in pieces: the same as at once."""

from __future__ import annotations

import io
import random
import re

import pytest
from rich.console import Console
from rich.markdown import Markdown
from terminal import Terminal

from gptoss_dist.chat import growing_markdown
from gptoss_dist.chat.growing_markdown import GrowingMarkdown

WIDTH, HEIGHT = 40, 10
PARAGRAPHS = "\n\n".join(f"Paragraph {number} has *some* words, more than one line holds." for number in range(12))
LIST = "\n".join(f"{number}. point {number}\n   - and a part of it" for number in range(1, 20))
CODE = "```python\n" + "\n".join(f"value_{number} = {number}" for number in range(30)) + "\n```"
TABLE = "| a | b |\n|---|---|\n" + "\n".join(f"| {number} | x |" for number in range(15))
MIXED = f"# Title\n\nBegin\n---\n{LIST}\n\n{CODE}\nafter\n\n***\n\n> quoted\nlazily\n\n{TABLE}\n\nThe end\n==="
TEXTS = {"paragraphs": PARAGRAPHS, "list": LIST, "code": CODE, "table": TABLE, "mixed": MIXED, "word": "hi", "none": ""}


@pytest.fixture(autouse=True)
def _drawn_at_once(monkeypatch):
    monkeypatch.setattr(growing_markdown, "_REFRESH_S", 0.0)


def console() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    size = {"width": WIDTH, "height": HEIGHT}
    return Console(file=out, force_terminal=True, color_system="standard", highlight=False, soft_wrap=True, **size), out


def shown(out: io.StringIO) -> list[str]:
    terminal = Terminal(WIDTH, HEIGHT)
    terminal.feed(out.getvalue())
    return re.sub("\n{3,}", "\n\n", "\n".join(terminal.lines)).strip().split("\n")  # rich puts two here and there


def at_once(text: str) -> list[str]:
    target, out = console()
    target.print(Markdown(text), soft_wrap=False)
    return shown(out)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_nothing_is_shown_twice_or_lost_however_tall_it_is(name: str, size: int):
    text = TEXTS[name]
    target, out = console()
    growing = GrowingMarkdown(target)
    for place in range(0, len(text), size):
        growing.feed(text[place : place + size])
    growing.close()
    assert shown(out) == at_once(text)


def test_lines_that_end_otherwise():
    text, generator = MIXED.replace("\n", "\r\n"), random.Random(3)
    target, out = console()
    growing = GrowingMarkdown(target)
    while text:
        size = generator.randrange(1, 30)
        growing.feed(text[:size])
        text = text[size:]
    growing.close()
    assert shown(out) == at_once(MIXED)


def test_what_grows_is_seen():
    target, out = console()
    growing = GrowingMarkdown(target)
    growing.feed(CODE[: CODE.index("value_20")])
    assert "value_19 = 19" in shown(out)[-1]
    assert len(shown(out)) < HEIGHT
    growing.close()


def test_blocks_that_are_over_are_not_drawn_again():
    target, out = console()
    growing = GrowingMarkdown(target)
    growing.feed(PARAGRAPHS + "\n")
    before = len(out.getvalue())
    growing.feed("The end.")
    assert "Paragraph 3" not in out.getvalue()[before:]
    growing.close()
