"""Streams that have nothing to say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

from gptoss_dist.server import sse


def test_a_stream_is_never_silent_for_longer_than_promised(monkeypatch):
    now, sent = 0.0, []
    pinged = asyncio.Event()
    real_sleep = asyncio.sleep

    async def sleep(seconds: float) -> None:
        nonlocal now
        end = now + seconds
        await real_sleep(0)
        now = max(now, end)

    async def events() -> AsyncIterator[bytes]:
        nonlocal now
        await real_sleep(0)
        now += 1.0  # while the first wait for a ping goes on
        yield b"data: 1\n\n"
        await pinged.wait()

    async def send(message: dict) -> None:
        if body := message.get("body"):
            sent.append((now, body))
            if body.startswith(b":"):
                pinged.set()

    monkeypatch.setattr(sse.asyncio, "sleep", sleep)
    monkeypatch.setattr(sse.time, "monotonic", lambda: now)
    asyncio.run(sse.EventStream(events())({}, None, send))
    said = [at for at, _ in sent]
    assert sent[-1][1] == b": waiting\n\n"
    assert max(later - earlier for earlier, later in pairwise(said)) <= sse._PING_S
