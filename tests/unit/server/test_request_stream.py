from __future__ import annotations

import asyncio

import pytest
from event_turns import with_turns

from gptoss_dist.engine.request import Event, Finish
from gptoss_dist.server.request_stream import AT_ONCE, RequestStream

BEHIND = 1000


async def behind() -> RequestStream:
    """One whose reader has BEHIND events to take, the last of which ends the request."""
    stream = RequestStream(["a"], lambda _: None, BEHIND)
    for place in range(BEHIND):
        stream.put(Event("a", (place,), Finish.stop if place == BEHIND - 1 else None))
    return stream


async def one_by_one(stream: RequestStream) -> list[list[Event]]:
    return [[event] async for event in stream]


async def in_batches(stream: RequestStream) -> list[list[Event]]:
    return [batch async for batch in stream.batches()]


@pytest.mark.parametrize("read", [one_by_one, in_batches])
def test_a_reader_that_is_behind_lets_others_have_their_turn(read):
    async def both() -> list[list[Event]]:
        return await read(await behind())

    batches, turns = asyncio.run(with_turns(both()))
    assert [event.tokens[0] for batch in batches for event in batch] == list(range(BEHIND))
    assert max(map(len, batches)) <= AT_ONCE
    assert turns >= BEHIND // AT_ONCE - 1
