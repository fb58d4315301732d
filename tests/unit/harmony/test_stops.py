from __future__ import annotations

import random

import pytest

from gptoss_dist.harmony.stops import StopFinder, cut, possible_stop


@pytest.mark.parametrize(
    ("pieces", "stops", "shown", "stopped"),
    [
        (["abc"], [], "abc", False),
        (["ab", "c"], ["bc"], "a", True),
        (["a", "b", "x"], ["bc"], "abx", False),
        (["a", "b"], ["bc"], "ab", False),
        (["aab", "c"], ["abc"], "a", True),
        (["abcd"], ["cd", "bc"], "a", True),
        (["abcd"], ["abcd", "b"], "a", True),
    ],
)
def test_the_text_ends_before_the_stop_wherever_pieces_end(pieces, stops, shown, stopped):
    finder = StopFinder(stops)
    assert "".join([finder.feed(piece) for piece in pieces]) + finder.flush() == shown
    assert finder.stopped == stopped
    assert finder.feed("more") == ("" if stopped else "more")


def test_any_split_shows_the_same_and_never_a_part_of_a_stop():
    chance = random.Random(3)
    for _ in range(500):
        text = "".join(chance.choice("ab") for _ in range(12))
        stops = ["".join(chance.choice("ab") for _ in range(chance.randint(2, 5))) for _ in range(2)]
        whole, _ = cut(text, stops)
        finder, shown, at = StopFinder(stops), "", 0
        while at < len(text):
            size = chance.randint(1, 4)
            shown += finder.feed(text[at : at + size])
            assert whole.startswith(shown), (text, stops)
            at += size
            if finder.stopped:
                break
        shown += finder.flush()
        assert shown == whole, (text, stops)
        assert possible_stop("ab", ["bc"]) == 1
