"""A line of output: what OpenAI's batch output is, with the error filled in where there is one.

    {"id": …, "custom_id": …, "response": {"status_code": 200, "request_id": …, "body": {…}}, "error": null}
    {"id": …, "custom_id": …, "response": {"status_code": 400, "request_id": …, "body": {"error": {…}}},
     "error": {"code": …, "message": …}}

Every record gets one such line, whichever form it came in; `custom_id` is its id.
"""

from __future__ import annotations

import uuid
from typing import Any

from gptoss_dist.batch.records import Record, Refusal
from gptoss_dist.server.api_error import ApiError, error_body


def answer_line(record: Record, body: dict[str, Any]) -> dict[str, Any]:
    """The line of a record that was answered."""
    return _line(record, 200, body, None)


def error_line(record: Record, error: ApiError | Refusal) -> dict[str, Any]:
    """The line of a record that was refused or failed."""
    if isinstance(error, Refusal):
        status, code, body = error.status, error.code, error_body(error.status, error.message, code=error.code)
    else:
        status, code, body = error.status_code, error.code or "invalid_request", error.body
    return _line(record, status, body, {"code": code, "message": error.message})


def _line(record: Record, status: int, body: dict[str, Any], error: dict[str, Any] | None) -> dict[str, Any]:
    name = uuid.uuid4().hex
    response = {"status_code": status, "request_id": f"req_{name}", "body": body}
    return {"id": f"batch_req_{name}", "custom_id": record.id, "response": response, "error": error}
