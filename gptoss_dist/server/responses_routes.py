"""/v1/responses and what is below it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.responses import Response

from gptoss_dist.server.body import BodyRoute
from gptoss_dist.server.openapi import ERRORS
from gptoss_dist.server.responses import Responses
from gptoss_dist.server.responses_request import ResponseRequest
from gptoss_dist.server.service import Service
from gptoss_dist.server.store import ResponseStore

_PAGE = 20
_LARGEST_PAGE = 100


class TokenCount(BaseModel):
    """As OpenAI writes it."""

    object: Literal["response.input_tokens"]
    input_tokens: int


_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The response; with `stream=true` as server-sent events.",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": {}},
        },
    }
}
_JSON: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {"schema": {"type": "object"}}}}}
_COUNT: dict[int | str, dict[str, Any]] = {200: {"model": TokenCount, "description": "Tokens of the prompt."}}
_LOOKUP_ERRORS: dict[int | str, dict[str, Any]] = {
    400: ERRORS[400],
    401: ERRORS[401],
    404: {**ERRORS[404], "description": "No stored response has this id."},
}


def build_router(service: Service, store: ResponseStore) -> APIRouter:
    """The routes, over one service and one store."""
    router = APIRouter(prefix="/v1/responses", tags=["responses"], route_class=BodyRoute)
    responses = Responses(service, store)

    @router.post("", response_model=None, responses={**_ANSWER, **ERRORS})
    async def create_response(body: ResponseRequest) -> Response:
        """Answer a conversation: whole, as a stream of events, or in the background."""
        return await responses.create(body)

    @router.post("/input_tokens", response_model=None, responses={**_COUNT, **ERRORS})
    async def count_input_tokens(body: ResponseRequest) -> Response:
        """How many tokens the prompt of a request would have; nothing is generated."""
        return await responses.count(body)

    @router.get("/{response_id}", response_model=None, responses={**_ANSWER, **_LOOKUP_ERRORS})
    async def retrieve_response(
        response_id: str,
        stream: bool = False,
        starting_after: Annotated[int | None, Query(ge=0)] = None,
    ) -> Response:
        """A stored response, or the events of one that was made with background and stream."""
        if stream:
            return responses.stream(response_id, 0 if starting_after is None else starting_after + 1)
        return responses.response(response_id)

    @router.delete("/{response_id}", response_model=None, responses={**_JSON, **_LOOKUP_ERRORS})
    async def delete_response(response_id: str) -> Response:
        """Forget a response; one in the background is ended."""
        return await responses.delete(response_id)

    @router.post("/{response_id}/cancel", response_model=None, responses={**_JSON, **_LOOKUP_ERRORS})
    async def cancel_response(response_id: str) -> Response:
        """End a response in the background."""
        return await responses.cancel(response_id)

    @router.get("/{response_id}/input_items", response_model=None, responses={**_JSON, **_LOOKUP_ERRORS})
    async def list_input_items(
        response_id: str,
        limit: Annotated[int, Query(ge=1, le=_LARGEST_PAGE)] = _PAGE,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> Response:
        """The items of the request that made a response, by pages."""
        return responses.input_items(response_id, limit, order == "desc", after)

    return router
