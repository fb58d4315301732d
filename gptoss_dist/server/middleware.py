"""What every HTTP request passes, in plain ASGI, from the outside in:

Observed     an id for it, its metrics, an access log if wanted, and an answer whatever happens
Limited      a body of bounded size, in bounded time
Guarded      an API key
Attended     its client: one that leaves ends the work for it
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptoss_dist.log import get_logger
from gptoss_dist.server.api_error import ApiError, error_body, error_response
from gptoss_dist.server.keys import ApiKeys, needs_key
from gptoss_dist.server.metrics import Metrics

logger = get_logger(__name__)

BODY_S = 60.0
"""A body has this long to arrive."""
_REQUEST_ID = re.compile(r"[\w.\-]{1,128}", re.ASCII)


class Observed:
    """Gives each request an id, `X-Request-Id`: the client's own if it has one. An unexpected error becomes a 500."""

    def __init__(self, app: ASGIApp, metrics: Metrics, access_log: bool) -> None:
        """Wrap `app`."""
        self._app, self._metrics, self._access_log = app, metrics, access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """For ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        started, status = time.monotonic(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:  # the server goes on; the client is told, if it has not got an answer yet
            logger.exception("request %s: unexpected failure", request_id)
            if not status:
                body = error_body(500, f"an unexpected failure; the server's log has it under {request_id}.")
                await error_response(500, body)(scope, receive, send_with_id)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", None) or "unknown"
            self._metrics.answered(path, status or 499)
            if self._access_log:
                seconds = time.monotonic() - started
                logger.info("%s %s %s %d %.3f s", request_id, scope["method"], path, status or 499, seconds)


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


class Guarded:
    """Answers 401 without a key that is known."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        """Wrap `app`."""
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """For ASGI."""
        if (
            scope["type"] != "http"
            or not needs_key(scope["path"])
            or self._keys.accepts(Headers(scope=scope).get("authorization"))
        ):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            401, "Incorrect or no API key. Send it as a header, Authorization: Bearer KEY.", code="invalid_api_key"
        )
        await error_response(401, error.body, error.headers)(scope, receive, send)


class Attended:
    """Cancels the work for a client that has left, wherever it is: queued, computing, or sending."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """For ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        messages: asyncio.Queue[Message | ApiError] = asyncio.Queue()

        async def listen() -> bool:
            """Whether the client left; else it sent too much, which the work is told."""
            while True:
                try:
                    message = await receive()
                except ApiError as error:
                    messages.put_nowait(error)
                    return False
                messages.put_nowait(message)
                if message["type"] == "http.disconnect":
                    return True

        async def next_message() -> Message:
            message = await messages.get()
            if isinstance(message, ApiError):
                raise message
            return message

        work = asyncio.ensure_future(self._app(scope, next_message, send))
        listener = asyncio.create_task(listen())
        try:
            await asyncio.wait((work, listener), return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and listener.result():
                work.cancel()
            await asyncio.wait((work,))
        finally:
            listener.cancel()
            work.cancel()
        if not work.cancelled():
            work.result()
