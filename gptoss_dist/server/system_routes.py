"""What says how the server is: /health, /ready, /metrics, /v1/models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from gptoss_dist.server.openapi import ERRORS, LOOKUP_ERRORS
from gptoss_dist.server.service import Service

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def build_router(service: Service) -> APIRouter:
    """The routes, over one service."""
    router = APIRouter(tags=["system"])

    @router.get("/health")
    async def health() -> dict[str, str]:
        """200 while the process lives."""
        return {"status": "ok"}

    @router.get("/ready", responses={503: {"description": "Loading, draining, failed, or a step takes too long."}})
    async def ready() -> Response:
        """200 while requests are taken and the engine steps."""
        is_ready = service.is_ready
        status = service.state.value if is_ready or service.state.value != "ready" else "stuck"
        return JSONResponse({"status": status}, 200 if is_ready else 503)

    @router.get(
        "/metrics",
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        response_class=Response,
    )
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(service.metrics.text(), media_type=_METRICS_TYPE)

    @router.get("/v1/models", responses=LOOKUP_ERRORS)
    async def list_models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [_model(service, service.model.name)]}

    @router.get("/v1/models/{name:path}", responses={400: ERRORS[400], **LOOKUP_ERRORS})
    async def retrieve_model(name: str) -> dict[str, Any]:
        """The model by any of its names."""
        return _model(service, service.model.check_name(name))

    return router


def _model(service: Service, name: str) -> dict[str, Any]:
    model = service.model
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "gptoss-dist",
        "max_model_len": model.context,
    }
