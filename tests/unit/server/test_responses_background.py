from __future__ import annotations

import asyncio

import pytest
from event_turns import with_turns

from gptoss_dist.server.api_error import ApiError
from gptoss_dist.server.event_log import EventLog
from gptoss_dist.server.request_stream import AT_ONCE
from gptoss_dist.server.responses_background import replayed

EVENTS = [f"{place} ".encode() for place in range(1000)]


@pytest.fixture
def log() -> EventLog:
    log = EventLog(lambda size: None)
    for event in EVENTS:
        log.append(event)
    return log


def test_a_long_log_is_sent_in_turns_with_others(log):
    async def read() -> list[bytes]:
        return [events async for events in replayed(log, 5)]

    sent, turns = asyncio.run(with_turns(read()))
    assert b"".join(sent) == b"".join(EVENTS[5:])
    assert max(len(events.split()) for events in sent) == AT_ONCE
    assert turns >= len(sent) - 2  # the first turn begins it


def test_nothing_is_sent_from_beyond_the_end(log):
    async def beyond() -> list[bytes]:
        return [events async for events in replayed(log, 5000)]

    assert asyncio.run(beyond()) == []


def test_what_was_let_go_is_told_and_the_rest_is_there(log):
    async def read(number: int) -> list[bytes]:
        return [events async for events in replayed(log, number)]

    assert log.shorten()
    assert (log.begin, log.end) == (125, 1000)
    assert b"".join(asyncio.run(read(125))) == b"".join(EVENTS[125:])
    with pytest.raises(ApiError, match="Events 5 to 124 of this stream are gone"):
        asyncio.run(read(5))
    while log.shorten():
        pass
    assert (log.begin, log.bytes) == (1000, 0)
