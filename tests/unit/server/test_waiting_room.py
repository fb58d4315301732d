from __future__ import annotations

import pytest

from gptoss_dist.server.api_error import ApiError
from gptoss_dist.server.waiting_room import WaitingRoom


def test_requests_take_room_from_their_preparation_to_their_first_token():
    waiting = WaitingRoom(3)
    with waiting.hold(2) as room:
        assert (len(waiting), waiting.preparing) == (2, 2)
        waiting.enter(room, ["a", "b"])
        assert (len(waiting), waiting.preparing) == (2, 0)
    assert len(waiting) == 2
    waiting.leave("a")
    waiting.leave("a")
    assert len(waiting) == 1


def test_room_is_given_back_when_the_preparation_fails():
    waiting = WaitingRoom(3)
    with pytest.raises(ZeroDivisionError), waiting.hold(3):
        raise ZeroDivisionError
    assert len(waiting) == 0


@pytest.mark.parametrize(("count", "status"), [(2, 429), (4, 400)])
def test_too_many_are_refused(count: int, status: int):
    waiting = WaitingRoom(3)
    with waiting.hold(2), pytest.raises(ApiError) as refused, waiting.hold(count):
        pass
    assert refused.value.status_code == status
    assert len(waiting) == 0
