"""Requests with a key only, where there are keys."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gptoss_dist.server.api_error import ApiError, error_response
from gptoss_dist.server.keys import ApiKeys, needs_key


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
