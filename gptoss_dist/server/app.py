"""The routes, the OpenAPI document made of them, and what every request passes on its way to them:

HeadAsGet    HEAD is GET without a body
Observed     an id for it, its metrics, an access log if wanted, and an answer whatever happens
Limited      a body of bounded size, in bounded time
Guarded      an API key
Attended     its client: one that leaves ends the work for it
"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from gptoss_dist.server import chat_completions, completions, load_model, responses_routes, system_routes, web_routes
from gptoss_dist.server.api_error import ApiError, error_body, error_response
from gptoss_dist.server.attended import Attended
from gptoss_dist.server.body import BodyRoute
from gptoss_dist.server.chat_request import ChatRequest
from gptoss_dist.server.completion_request import CompletionRequest
from gptoss_dist.server.guarded import Guarded
from gptoss_dist.server.head_as_get import HeadAsGet
from gptoss_dist.server.keys import ApiKeys
from gptoss_dist.server.limited import Limited
from gptoss_dist.server.observed import Observed
from gptoss_dist.server.openapi import ANSWER, ERRORS, tell_the_truth
from gptoss_dist.server.request_fields import describe
from gptoss_dist.server.service import Service
from gptoss_dist.server.store import ResponseStore

_MB = 2**20


def build_app(
    service: Service,
    keys: ApiKeys,
    max_body_mb: float,
    access_log: bool = False,
    store: ResponseStore | None = None,
    cors_origins: Sequence[str] = (),
) -> ASGIApp:
    """The whole server as one ASGI application; without a `store` no response can be asked for later."""
    app = FastAPIOffline(title="gptoss-dist", description="OpenAI's API over gpt-oss.", redoc_url=None)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _defect)
    app.add_exception_handler(RequestValidationError, _invalid)
    for router in (system_routes.build_router(service), web_routes.build_router(service), _chat(service)):
        app.include_router(router)
    app.include_router(load_model.build_router(service))
    app.include_router(responses_routes.build_router(service, ResponseStore(0, 0) if store is None else store))
    tell_the_truth(app, keys.required)
    limit = int(max_body_mb * _MB)
    whole = HeadAsGet(Observed(Limited(Guarded(Attended(app), keys), limit), service.metrics, access_log))
    return _shared(whole, cors_origins) if cors_origins else whole


def _shared(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Open to pages of these origins, errors too. A browser asks first, without a key, whether it may."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=("*",),
        expose_headers=("X-Request-Id", "Retry-After"),
    )


def _chat(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["generation"], route_class=BodyRoute)

    @router.post("/chat/completions", response_model=None, responses={**ANSWER, **ERRORS})
    async def create_chat_completion(body: ChatRequest) -> Response:
        """Answer a conversation, whole or as a stream of events."""
        return await chat_completions.answer(service, body)

    @router.post("/completions", response_model=None, responses={**ANSWER, **ERRORS})
    async def create_completion(body: CompletionRequest) -> Response:
        """Continue bare texts or token ids, whole or as a stream of events."""
        return await completions.answer(service, body)

    return router


async def _http_error(request: Request, error: Exception) -> Response:
    """Any refusal, as OpenAI's error object."""
    assert isinstance(error, HTTPException)
    if isinstance(error, ApiError):
        return error_response(error.status_code, error.body, error.headers)
    said = error.detail
    if said in ("Not Found", "Method Not Allowed"):  # Starlette's, for what is no route
        said = f"{request.method} {request.url.path[:200]}: there is no such route; /docs lists those there are."
    return error_response(error.status_code, error_body(error.status_code, said), error.headers)


async def _defect(_: Request, __: Exception) -> Response:
    """A defect of this program; the outermost layer logs it."""
    return error_response(
        500, error_body(500, "an unexpected failure; the server's log has it under this X-Request-Id.")
    )


async def _invalid(request: Request, error: Exception) -> Response:
    """A body that is no JSON, or a field of it that is wrong."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    message, param = describe(first)
    kind = request.headers.get("content-type", "none")
    if first["type"] == "json_invalid":
        message = f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}."
        param = None
    elif param is None and "json" not in kind:
        message = f"the body must be JSON, sent with Content-Type: application/json; it came with {kind[:80]!r}."
    return error_response(400, error_body(400, message, param, "invalid_value" if param else None))
