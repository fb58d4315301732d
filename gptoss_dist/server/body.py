"""The JSON of a request's body, read so that a long one holds up nobody.

Python's own reader lets no other thread run before it has read everything. A long body is therefore read in a thread,
by the same reader's slower half, which is Python itself: between any two values others have their turn.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from json.scanner import py_make_scanner  # type: ignore[attr-defined]  # typeshed has the C half only
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from gptoss_dist.server.api_error import ApiError

AT_ONCE = 256 * 1024
"""Bytes that are read on the event loop, in some 2 ms."""
_LONG = ThreadPoolExecutor(1, "gptoss-body")
"""One long body at a time, in no thread that a prompt waits for."""


class BodyRoute(APIRoute):
    """A route whose body, if it has one, is read as this module does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """For FastAPI."""
        answer = super().get_route_handler()

        async def with_body(request: Request) -> Response:
            return await answer(_Request(request.scope, request.receive))

        return with_body


class _Request(Request):
    async def json(self) -> Any:
        """The body. Raises JSONDecodeError, or ApiError (400, 415) where it has another reason to give up."""
        coding = self.headers.get("content-encoding", "identity")
        if coding.lower() != "identity":
            message = f"Content-Encoding is {coding[:80]!r}, which is not read here: send the body as it is."
            raise ApiError(415, message, code="unsupported_coding")
        body = await self.body()
        try:
            if len(body) <= AT_ONCE:
                return json.loads(body)
            return await asyncio.get_running_loop().run_in_executor(_LONG, loads, body)
        except json.JSONDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body is not JSON: {str(error)[:200]}.") from None


class _Interruptible(json.JSONDecoder):
    """Python's own decoder with the half of its scanner that is written in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.scan_once = py_make_scanner(self)


def loads(body: bytes) -> Any:
    """As json.loads, in more time, with turns for other threads."""
    return _Interruptible().decode(body.decode(json.detect_encoding(body), "surrogatepass"))
