"""`tools` and `tool_choice` of Chat Completions as an offer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptoss_dist.server.api_error import ApiError
from gptoss_dist.server.offer import Offer, allowed, listed, name_of

_ALLOWED = "tool_choice.allowed_tools"


def offer_of(tools: Sequence[dict[str, Any]], choice: str | Mapping[str, Any] | None) -> Offer:
    """What a request offers; the functions themselves are checked by harmony. Raises ApiError (400)."""
    if choice == "none":
        return Offer((), "none")
    if choice is None or isinstance(choice, str):
        return Offer(tuple(tools), choice or "auto")
    if choice.get("type") != "allowed_tools":
        return Offer(tuple(tools), dict(choice))
    inner = choice.get("allowed_tools")
    if not isinstance(inner, Mapping):
        raise ApiError(400, f"{_ALLOWED}: an object with mode and tools is needed.", param=_ALLOWED)
    names = [name_of(one.get("function")) for one in listed(inner, _ALLOWED)]
    if None in names:
        message = f'{_ALLOWED}.tools: expected {{"type": "function", "function": {{"name": …}}}}.'
        raise ApiError(400, message, param=f"{_ALLOWED}.tools")
    return allowed(tools, inner.get("mode", "auto"), [str(name) for name in names], _ALLOWED)
