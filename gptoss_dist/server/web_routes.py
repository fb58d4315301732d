"""The web page at / and what it shows: its files, and /stats."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gptoss_dist.server.recent import Recent
from gptoss_dist.server.service import Service
from gptoss_dist.server.web_files import HEADERS, PAGE, WebFile, load_files
from gptoss_dist.server.web_stats import stats_of


def build_router(service: Service) -> APIRouter:
    """The routes, over one service. `/stats` counts the server's age from this call."""
    router = APIRouter(tags=["system"])
    files = load_files()
    recent = Recent(service.metrics.text)
    started = time.monotonic()

    @router.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        """The page."""
        return _send(files[PAGE], request)

    @router.get("/web/{name}", include_in_schema=False)
    async def file(name: str, request: Request) -> Response:
        """A file of the page."""
        if name not in files:
            raise HTTPException(404, f"the web page has no file {name[:80]!r}.")
        return _send(files[name], request)

    @router.get("/stats")
    async def stats() -> dict[str, Any]:
        """How the server is doing now, as the web page at / shows it: load, pages, speed, latencies."""
        now = time.monotonic()
        return stats_of(service, recent.look(now), now - started)

    return router


def _send(file: WebFile, request: Request) -> Response:
    headers = {**HEADERS, "ETag": file.etag}
    if file.is_known(request.headers.get("if-none-match")):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
