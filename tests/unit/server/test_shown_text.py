from __future__ import annotations

import pytest

from gptoss_dist.engine.request import TokenLogprobs
from gptoss_dist.server.shown_text import Shown, ShownText

TEXT = "one STOP two"


def fed(text: ShownText, pieces: list[str]) -> list[Shown]:
    shown = []
    for number, piece in enumerate(pieces):
        text.choose(number, TokenLogprobs(-float(number), ()))
        shown.append(text.feed(piece))
    return [one for one in (*shown, text.flush()) if one is not None]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 12])
@pytest.mark.parametrize(("stop", "end"), [((), TEXT), (("STOP",), "one "), (("two!",), TEXT), (("e", "STOP"), "on")])
def test_every_token_that_begins_in_what_is_shown_comes_once_and_in_its_place(size, stop, end):
    pieces = [TEXT[begin : begin + size] for begin in range(0, len(TEXT), size)]
    text = ShownText(stop)
    shown = fed(text, pieces)
    assert "".join(one.text for one in shown) == end
    begins = [place for place in range(0, len(TEXT), size) if place < len(end)]
    assert [place for one in shown for place in one.offsets] == begins
    assert [one.token for each in shown for one in each.chosen] == list(range(len(begins)))
    assert text.stopped == (end != TEXT)


def test_tokens_of_no_text_come_at_the_end():
    text = ShownText()
    assert [one.text for one in fed(text, ["a", ""])] == ["a", ""]
    assert text.flush() is None
