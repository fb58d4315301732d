"""POST /load_model: `transformers chat` asks, before it begins, for the model to be loaded. It is loaded already."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from gptoss_dist.server.body import BodyRoute
from gptoss_dist.server.openapi import ERRORS
from gptoss_dist.server.request_fields import Fields
from gptoss_dist.server.service import Service
from gptoss_dist.server.sse import EventStream, encode

_STREAM: dict[int | str, dict[str, Any]] = {200: {"description": "One event.", "content": {"text/event-stream": {}}}}


class LoadRequest(Fields):
    """What `transformers chat` sends."""

    model: str


def build_router(service: Service) -> APIRouter:
    """The route, over one service."""
    router = APIRouter(tags=["system"], route_class=BodyRoute)

    @router.post("/load_model", response_model=None, responses={**_STREAM, **ERRORS})
    async def load_model(body: LoadRequest) -> Response:
        """Say that the model is loaded, as a stream of one event."""
        return EventStream(_events(service.model.check_name(body.model)))

    return router


async def _events(name: str) -> AsyncIterator[bytes]:
    yield encode({"status": "ready", "model": name, "cached": True})
