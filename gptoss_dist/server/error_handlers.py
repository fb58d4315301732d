"""Whatever ends a request, as OpenAI's error object."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gptoss_dist.server.api_error import ApiError, error_body, error_response
from gptoss_dist.server.request_fields import describe

_NO_OBJECT = ("model_attributes_type", "missing")
"""pydantic's words for a body that is something else, and for one that is not there."""


def add_error_handlers(app: FastAPI) -> None:
    """Let `app` answer refusals, wrong bodies and defects."""
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _defect)
    app.add_exception_handler(RequestValidationError, _invalid)


async def _http_error(request: Request, error: Exception) -> Response:
    """A refusal."""
    assert isinstance(error, HTTPException)
    if isinstance(error, ApiError):
        return error_response(error.status_code, error.body, error.headers)
    said = error.detail
    if said in ("Not Found", "Method Not Allowed"):  # Starlette's, for what is no route
        said = f"{request.method} {request.url.path[:200]}: there is no such route; /docs lists those there are."
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = _allowed(request, headers.get("Allow", ""))
    return error_response(error.status_code, error_body(error.status_code, said), headers)


def _allowed(request: Request, found: str) -> str:
    """All methods of the path, of which Starlette finds those of the first route only."""
    path = getattr(request.scope.get("route"), "path_format", None)
    methods = {name.upper() for name in request.app.openapi()["paths"].get(path, {})} | set(filter(None, [found]))
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))


async def _defect(_: Request, __: Exception) -> Response:
    """A defect of this program; the outermost layer logs it."""
    return error_response(
        500, error_body(500, "an unexpected failure; the server's log has it under this X-Request-Id.")
    )


async def _invalid(request: Request, error: Exception) -> Response:
    """A body that is no JSON, or a field that is wrong."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    message, param = describe(first)
    if first["type"] == "json_invalid":
        message, param = f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}.", None
    elif first["loc"] == ("body",) and first["type"] in _NO_OBJECT:
        message = _no_object(request, first["input"])
    return error_response(400, error_body(400, message, param, "invalid_value" if param else None))


def _no_object(request: Request, found: Any) -> str:
    """What to say of a body that is no JSON object; FastAPI leaves one of another type unread."""
    if isinstance(found, bytes):
        kind = request.headers.get("content-type", "none")
        return f"the body must be JSON, sent with Content-Type: application/json; it came with {kind[:80]!r}."
    return f"the body must be a JSON object{'' if found is None else f', not {type(found).__name__}'}."
