"""Server-sent events as OpenAI's clients read them, over ASGI."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gptoss_dist.server.api_error import ApiError

DONE = b"data: [DONE]\n\n"
_PING = b": waiting\n\n"
_PING_S = 15.0
"""A stream says something at least this often, so that nothing between takes it for dead."""
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""What JSON leaves as it is and Unicode takes for the end of a line: clients that cut by `splitlines` break there."""
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def encode(content: Any, event: str | None = None) -> bytes:
    """One event; `event` names its kind, which the Responses API wants and Chat does not."""
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":")).translate(_LINE_ENDS)
    return (f"event: {event}\ndata: {data}\n\n" if event else f"data: {data}\n\n").encode()


class EventStream(Response):
    """Sends events as they come; an ApiError of theirs is the last one, an object that OpenAI's clients raise for."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None] | None = None) -> None:
        """`close` is called in every case: all was sent, something failed, or the client is gone."""
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._events, self._close = events, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """For ASGI. A client that leaves cancels this task."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._send_all(send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            if self._close is not None:
                self._close()

    async def _send_all(self, send: Send) -> None:
        last = time.monotonic()

        async def ping() -> None:
            nonlocal last
            while True:
                if (silent_s := time.monotonic() - last) < _PING_S:
                    await asyncio.sleep(_PING_S - silent_s)
                else:
                    last = time.monotonic()
                    await send({"type": "http.response.body", "body": _PING, "more_body": True})

        pings = asyncio.create_task(ping())
        try:
            async for event in self._events:
                if event:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                    last = time.monotonic()
        except ApiError as error:
            await send({"type": "http.response.body", "body": encode(error.body), "more_body": True})
        finally:
            pings.cancel()
