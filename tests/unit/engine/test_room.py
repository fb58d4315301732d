from __future__ import annotations

import pytest

from gptoss_dist.engine.page_needs import PageCounts
from gptoss_dist.engine.request import Request, Sampling
from gptoss_dist.engine.room import Room
from gptoss_dist.errors import DoesNotFitError

ROOM = Room(PageCounts(10, 3), page_size=4, window=8, max_running=6)


def request(prompt: int, answer: int) -> Request:
    return Request("a", (7,) * prompt, Sampling(answer))


def test_what_just_fits_is_taken():
    assert ROOM.needed(request(30, 10)) == ROOM.pages
    ROOM.check(request(30, 10))
    Room(PageCounts(64, 2), 4, 8, 6).check(request(4, 4))


def test_what_can_never_fit_is_refused_with_numbers():
    with pytest.raises(DoesNotFitError, match=r"31 prompt tokens and up to 10 new ones need 11 pages .* has 10 and 3"):
        ROOM.check(request(31, 10))
    with pytest.raises(DoesNotFitError, match=r"need 3 pages .* and 3 in sliding layers, and the cache has 64 and 2"):
        Room(PageCounts(64, 2), 4, 8, 6).check(request(9, 1))


def test_how_many_of_a_kind_can_run_at_once():
    assert [ROOM.at_once(request(tokens, 10)) for tokens in (31, 30, 10, 1)] == [0, 1, 2, 3]
    assert ROOM.at_once(request(1, 1)) == ROOM.max_running
