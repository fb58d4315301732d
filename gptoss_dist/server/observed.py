"""What is known of each HTTP request: its id, its metrics, a line of the access log; and an answer whatever happens."""

from __future__ import annotations

import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptoss_dist.log import get_logger
from gptoss_dist.server.api_error import error_body, error_response
from gptoss_dist.server.metrics import Metrics

logger = get_logger(__name__)

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
