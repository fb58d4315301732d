from __future__ import annotations

import asyncio

from gptoss_dist.server.request_stream import AT_ONCE
from gptoss_dist.server.responses_background import replayed

LOG = [f"{place} ".encode() for place in range(1000)]


def test_a_long_log_is_sent_in_turns_with_others():
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def both() -> list[bytes]:
        task = asyncio.create_task(other())
        sent = [events async for events in replayed(LOG, 5)]
        task.cancel()
        return sent

    sent = asyncio.run(both())
    assert b"".join(sent) == b"".join(LOG[5:])
    assert max(len(events.split()) for events in sent) == AT_ONCE
    assert turns >= len(sent) - 2  # the first turn begins it


def test_nothing_is_sent_from_beyond_the_end():
    async def beyond() -> list[bytes]:
        return [events async for events in replayed(LOG, 5000)]

    assert asyncio.run(beyond()) == []
