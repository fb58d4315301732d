"""Bodies of bounded size, in bounded time."""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptoss_dist.server.api_error import ApiError, error_response

BODY_S = 60.0
"""A body has this long to arrive."""


class Limited:
    """Answers 413 to a body of more than `limit` bytes, before it is read whole, and 408 to one that takes too long."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        """Wrap `app`."""
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """For ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdigit() and int(length) > self._limit:
            await self._refuse(f"the body has {length} bytes", scope, receive, send)
            return
        seen, deadline = 0, time.monotonic() + BODY_S
        is_whole = False

        async def counted() -> Message:
            nonlocal seen, is_whole
            if is_whole:  # what is left to receive is that the client leaves
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise self._late(seen) from None
            seen += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if seen > self._limit:
                raise self._error(f"the body has more than {self._limit} bytes")
            return message

        await self._app(scope, counted, send)

    def _error(self, found: str) -> ApiError:
        message = f"{found}, and job.max_body_mb allows {self._limit} bytes."
        return ApiError(413, message, code="body_too_large", closes=True)

    def _late(self, seen: int) -> ApiError:
        message = f"the body did not arrive within {BODY_S:g} s: {seen} bytes of it did."
        return ApiError(408, message, code="body_too_slow", closes=True)

    async def _refuse(self, found: str, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._error(found)
        await error_response(413, error.body, error.headers)(scope, receive, send)
