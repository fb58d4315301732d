"""The routes, the OpenAPI document made of them, and what every request passes on its way to them:

HeadAsGet    HEAD is GET without a body
Observed     an id for it, its metrics, an access log if wanted, and an answer whatever happens
Limited      a body of bounded size, in bounded time
Guarded      an API key
Attended     its client: one that leaves ends the work for it
"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from gptoss_dist.server import chat_completions, completions, load_model, responses_routes, system_routes, web_routes
from gptoss_dist.server.attended import Attended
from gptoss_dist.server.body import BodyRoute
from gptoss_dist.server.chat_request import ChatRequest
from gptoss_dist.server.completion_request import CompletionRequest
from gptoss_dist.server.error_handlers import add_error_handlers
from gptoss_dist.server.guarded import Guarded
from gptoss_dist.server.head_as_get import HeadAsGet
from gptoss_dist.server.keys import ApiKeys
from gptoss_dist.server.limited import Limited
from gptoss_dist.server.observed import Observed
from gptoss_dist.server.openapi import ANSWER, ERRORS, tell_the_truth
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
    # No redirect from a path that ends in a slash: behind a proxy with TLS it would lead to http, with the key.
    app = FastAPIOffline(
        title="gptoss-dist", description="OpenAI's API over gpt-oss.", redoc_url=None, redirect_slashes=False
    )
    add_error_handlers(app)
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
