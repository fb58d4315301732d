from __future__ import annotations

import asyncio

from event_turns import with_turns

from gptoss_dist.server.request_stream import AT_ONCE
from gptoss_dist.server.responses_background import replayed

LOG = [f"{place} ".encode() for place in range(1000)]


def test_a_long_log_is_sent_in_turns_with_others():
    async def read() -> list[bytes]:
        return [events async for events in replayed(LOG, 5)]

    sent, turns = asyncio.run(with_turns(read()))
    assert b"".join(sent) == b"".join(LOG[5:])
    assert max(len(events.split()) for events in sent) == AT_ONCE
    assert turns >= len(sent) - 2  # the first turn begins it


def test_nothing_is_sent_from_beyond_the_end():
    async def beyond() -> list[bytes]:
        return [events async for events in replayed(LOG, 5000)]

    assert asyncio.run(beyond()) == []
