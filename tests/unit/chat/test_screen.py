from __future__ import annotations

import io
import time
from contextlib import suppress

import pytest
from rich.console import Console
from terminal import Terminal

from gptoss_dist.chat.conversation import Piece
from gptoss_dist.chat.screen import Screen

ANSWER = (
    Piece("analysis", "Let me "),
    Piece("analysis", "see."),
    Piece("call", "", "clock", "call_1"),
    Piece("call", "{}", "clock", "call_1"),
    Piece("final", "It is **no"),
    Piece("final", "on**."),
)


def test_plain_text_names_the_channels(capsys):
    screen = Screen(True, Console(file=io.StringIO()))
    with screen:
        for piece in ANSWER:
            screen.show(piece)
    assert capsys.readouterr().out == "analysis: Let me see.\n\ncall clock: {}\n\nfinal: It is **noon**.\n"


def test_reasoning_can_be_left_out(capsys):
    screen = Screen(False, Console(file=io.StringIO()))
    with screen:
        for piece in ANSWER[:2] + ANSWER[4:]:
            screen.show(piece)
    assert capsys.readouterr().out == "final: It is **noon**.\n"


def test_an_answer_without_a_piece_shows_nothing(capsys):
    with Screen(True, Console(file=io.StringIO())):
        pass
    assert capsys.readouterr().out == ""


def on_terminal(height: int = 25) -> tuple[Screen, io.StringIO]:
    out = io.StringIO()
    size = {"width": 60, "height": height}
    console = Console(file=out, force_terminal=True, color_system="standard", highlight=False, **size)
    return Screen(True, console), out


def test_a_terminal_dims_reasoning_and_renders_the_answer():
    screen, out = on_terminal()
    with screen:
        for piece in ANSWER:
            screen.show(piece)
    text = out.getvalue()
    assert "\x1b[2mLet me \x1b[0m\x1b[2msee.\x1b[0m" in text
    assert "→ clock " in text
    assert "\x1b[1mnoon\x1b[0m" in text  # Markdown's bold
    assert "**noon**" not in text


@pytest.mark.parametrize("text", ["[bold]not markup[/bold]", "[/]"])
def test_reasoning_is_no_markup(text: str):
    screen, out = on_terminal()
    with screen:
        screen.show(Piece("analysis", text))
    assert text in out.getvalue()


def test_an_answer_that_breaks_off_leaves_the_terminal_whole():
    screen, out = on_terminal()
    with suppress(KeyboardInterrupt), screen:
        screen.show(Piece("final", "It is"))
        raise KeyboardInterrupt
    assert "It is" in out.getvalue()
    assert out.getvalue().rfind("\x1b[?25h") > out.getvalue().rfind("\x1b[?25l")  # the cursor is shown again


def test_an_answer_that_is_taller_than_the_window_is_there_once():
    screen, out = on_terminal(height=6)
    with screen:
        for number in range(12):
            screen.show(Piece("final", f"Paragraph {number}.\n\n"))
            time.sleep(0.12)  # long enough to be drawn
    terminal = Terminal(60, 6)
    terminal.feed(out.getvalue())
    assert [line for line in terminal.lines if line] == [f"Paragraph {number}." for number in range(12)]
