from __future__ import annotations

import random

import pytest

from gptoss_dist.sse import EventParser

STREAM = (
    'data: {"text": "é✓😀"}\n\n: a comment\r\n\r\nevent: x\r\ndata:one\r\ndata: two\r\n\r\ndata: 3\r\rid: 7\n\n'
    "data: [DONE]\n\n"
)
EVENTS = ['{"text": "é✓😀"}', "one\ntwo", "3", "[DONE]"]


def parsed(chunks: list[bytes]) -> list[str]:
    parser = EventParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def test_whole():
    assert parsed([STREAM.encode()]) == EVENTS


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_cut_into_pieces_of_one_size(size: int):
    content = STREAM.encode()
    assert parsed([content[at : at + size] for at in range(0, len(content), size)]) == EVENTS


def test_cut_anywhere():
    content, generator = STREAM.encode(), random.Random(11)
    for _ in range(300):
        cuts = sorted(generator.sample(range(len(content) + 1), 6))
        pieces = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
        assert parsed(pieces) == EVENTS, cuts


def test_an_event_is_given_out_as_soon_as_it_is_whole():
    parser = EventParser()
    assert parser.feed(b"data: 1\n") == []
    assert parser.feed(b"\n") == ["1"]
    assert parser.feed(b"data: 2\r\n\r") == ["2"]
    assert parser.feed(b"\ndata: 3\n\n") == ["3"]
    assert parser.feed(b"data: cut off") == []


def test_only_the_first_byte_order_mark_and_one_space_are_taken_off():
    assert parsed(["\ufeffdata:  two spaces\n\n".encode()]) == [" two spaces"]


def test_bytes_that_are_no_utf_8():
    with pytest.raises(UnicodeDecodeError):
        parsed([b"data: \xff\n\n"])
