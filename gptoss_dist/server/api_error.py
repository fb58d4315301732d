"""A refusal or failure as OpenAI's API says it: an HTTP status and `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from gptoss_dist.errors import ConfigError, DoesNotFitError, GptOssDistError, PromptError, RankError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}
_LONGEST = 2000
"""Characters of a message."""
_PLACE = re.compile(r"(messages|tools|tool_choice|response_format)(?:\[(\d+)\])?")


class ApiError(HTTPException):
    """Ends a request with `status`; within a stream that has begun it becomes the stream's last event."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_s: float | None = None,
        closes: bool = False,
    ) -> None:
        """`param` names the field that is wrong, `code` the kind of error, `retry_s` when to try again.

        `closes`: a part of the body stays unread, so the connection cannot be used again.
        """
        headers = {} if retry_s is None else {"Retry-After": str(max(1, math.ceil(retry_s)))}
        if closes:
            headers["Connection"] = "close"
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, message, headers)
        self.message, self.param, self.code = message, param, code

    @property
    def body(self) -> dict[str, Any]:
        """What the client gets as JSON."""
        return error_body(self.status_code, self.message, self.param, self.code)


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = _TYPES.get(status, "invalid_request_error")
    message = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}…"  # it may quote what a client sent
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """An error as a response; escaped, for a message may quote half a character that a client sent."""
    return Response(json.dumps(body), status, headers, "application/json")


def unsupported(param: str, message: str) -> ApiError:
    """400 for something that gpt-oss, or this server, cannot do."""
    return ApiError(400, message, param=param, code="unsupported_value")


def from_error(error: GptOssDistError) -> ApiError:
    """One of this program's own errors about a single request, as the client sees it."""
    message = str(error)
    if isinstance(error, RankError):
        return ApiError(500, message, code="rank_failed")
    if isinstance(error, DoesNotFitError):
        return ApiError(400, message, param="messages", code="context_length_exceeded")
    if isinstance(error, PromptError | ConfigError) and (place := _PLACE.match(message)):
        param = place[1] if place[2] is None else f"{place[1]}.[{place[2]}]"
        return ApiError(400, message, param=param, code="invalid_value")
    return ApiError(400, message)
