"""The functions that a model is told of, and which of them it may, or has to, call; alike for all APIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_dist.server.api_error import ApiError


@dataclass(frozen=True)
class Offer:
    """`tools` and `choice` are written as Chat Completions writes them."""

    tools: tuple[dict[str, Any], ...]
    choice: str | dict[str, Any]

    @property
    def names(self) -> list[str]:
        """Of the functions; call it once they are checked."""
        return [str(tool["function"]["name"]) for tool in self.tools]


def check_choice(tools: Sequence[Any], choice: Any) -> None:
    """Raise ApiError (400) for a choice that means one of the functions where there are none; `auto` does not."""
    if not tools and choice not in (None, "none", "auto"):
        raise ApiError(400, "tool_choice needs tools.", param="tool_choice")


def allowed(tools: Sequence[dict[str, Any]], mode: Any, names: Sequence[str], where: str) -> Offer:
    """Only the functions `names` of `tools`; `where` is the field that lists them. Raises ApiError (400)."""
    if mode not in ("auto", "required"):
        raise ApiError(400, f"{where}.mode: {mode!r}; use auto or required.", param=f"{where}.mode")
    known = [name_of(tool.get("function")) for tool in tools]
    if unknown := [name for name in names if name not in known]:
        raise ApiError(400, f"{where}.tools: no function {unknown[0]!r} among the tools.", param=f"{where}.tools")
    return Offer(tuple(tool for tool, name in zip(tools, known, strict=True) if name in names), mode)


def listed(choice: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    """What a choice lists under `tools`. Raises ApiError (400) for anything but a list of objects."""
    tools = choice.get("tools")
    if not isinstance(tools, list) or not tools or not all(isinstance(one, Mapping) for one in tools):
        raise ApiError(400, f"{where}.tools: a list of functions is needed.", param=f"{where}.tools")
    return tools


def name_of(function: Any) -> str | None:
    """The name of what may be a function; None if it has none."""
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None
