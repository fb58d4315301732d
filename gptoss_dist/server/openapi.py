"""What the OpenAPI document says beyond what the routes' types do: streams, errors, keys."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from gptoss_dist.server.keys import needs_key


class ErrorContent(BaseModel):
    """What was wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's error object."""

    error: ErrorContent


_MEANINGS = {
    400: "A field is wrong, or contradicts another; `param` names it.",
    401: "No API key, or one that is not known.",
    404: "The model is not served here.",
    408: "The body did not arrive in time.",
    413: "The body is longer than `job.max_body_mb`.",
    415: "The body is compressed.",
    429: "Too many requests wait; `Retry-After` says when to try again.",
    503: "The server is loading or shutting down; `Retry-After` says when to try again.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": meaning} for status, meaning in _MEANINGS.items()
}
"""Responses of routes that generate."""
LOOKUP_ERRORS: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (401, 404, 503)}
"""Responses of routes that only look something up."""
ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream=true` as server-sent events that end in `[DONE]`.",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {},
        },
    }
}


def tell_the_truth(app: FastAPI, has_keys: bool) -> None:
    """Take FastAPI's own 422 out of the document, for a wrong body is a 400 here, and put the API key in."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
                    if has_keys and needs_key(path):
                        operation["security"] = [{"key": []}]
            components = document.setdefault("components", {})
            for name in ("HTTPValidationError", "ValidationError"):
                components.get("schemas", {}).pop(name, None)
            if has_keys:
                components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
