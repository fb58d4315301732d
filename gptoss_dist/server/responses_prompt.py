"""From a request and the conversation before it to the prompt's tokens and the constraint on the answer.

Everything here takes time that grows with the conversation: call it off the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gptoss_dist.engine.request import Constraint
from gptoss_dist.errors import ConfigError, PromptError
from gptoss_dist.harmony.conversation import PromptOptions, render
from gptoss_dist.harmony.grammar import constraint_for
from gptoss_dist.server.chat_request import date_of
from gptoss_dist.server.offer import Offer
from gptoss_dist.server.responses_errors import client_error
from gptoss_dist.server.responses_input import Find, Item, items_of
from gptoss_dist.server.responses_messages import messages_of
from gptoss_dist.server.responses_request import ResponseRequest
from gptoss_dist.server.responses_tools import format_of, offer_of
from gptoss_dist.server.sampling import check_count
from gptoss_dist.server.served_model import ServedModel

_ROOM = 1024
"""Tokens that truncation=auto leaves for the answer where max_output_tokens does not say; at most half the context."""


@dataclass(frozen=True)
class Prompt:
    """What the engine gets, and what of the request is kept.

    `dropped` items of the conversation were left out of the tokens.
    """

    items: tuple[Item, ...]
    tokens: list[int]
    constraint: Constraint | None
    offer: Offer
    dropped: int = 0


def prompt_of(body: ResponseRequest, model: ServedModel, history: Sequence[Item], find: Find) -> Prompt:
    """The prompt of `history` and the request's own items. Raises ApiError (400, 404)."""
    offer = offer_of(body.tools, body.tool_choice)
    response_format = format_of(body.text.format if body.text else None)
    check_count(len(body.input) if isinstance(body.input, list) else 1, model.context, "input")
    items = items_of(body.input, find)
    effort = body.reasoning.effort if body.reasoning else None
    options = PromptOptions(
        reasoning_effort=effort or model.generation.reasoning_effort.value,
        current_date=date_of(model.date),
        tools=offer.tools,
        response_format=response_format,
    )
    conversation = [*history, *items]

    def tokens_without(dropped: range) -> list[int]:
        kept = conversation[: dropped.start] + conversation[dropped.stop :]
        return _render(body.instructions, kept, options, dropped, len(history))

    tokens, dropped = _fit(conversation, tokens_without, body, model.context)
    try:
        parallel = body.parallel_tool_calls is not False
        constraint = constraint_for(response_format, offer.tools, offer.choice, parallel)
    except (ConfigError, PromptError) as error:
        raise client_error(error) from None
    return Prompt(tuple(items), tokens, constraint, offer, dropped)


def turns_of(conversation: Sequence[Item]) -> list[int]:
    """Where the turns begin: at each message of the user."""
    return [index for index, item in enumerate(conversation) if item.get("role") == "user"]


def _fit(
    conversation: Sequence[Item], tokens_without: Callable[[range], list[int]], body: ResponseRequest, context: int
) -> tuple[list[int], int]:
    """The tokens, and how many items are left out: with truncation=auto, the fewest oldest turns that need be.

    What stands before the first message of the user, and the last turn, stay.
    """
    room = body.most_tokens or min(_ROOM, context // 2)
    tokens = tokens_without(range(0))
    starts = turns_of(conversation)
    if body.truncation != "auto" or len(tokens) + room <= context or len(starts) < 2:
        return tokens, 0
    low, high = 1, len(starts) - 1  # how many turns: at least, at most
    best = tokens_without(range(starts[0], starts[high]))
    while low < high:
        middle = (low + high) // 2
        tokens = tokens_without(range(starts[0], starts[middle]))
        if len(tokens) + room <= context:
            high, best = middle, tokens
        else:
            low = middle + 1
    return best, starts[high] - starts[0]


def _render(
    instructions: str | None, kept: Sequence[Item], options: PromptOptions, dropped: range, before: int
) -> list[int]:
    placed = messages_of(instructions, kept)
    try:
        return render([one.message for one in placed], options)
    except PromptError as error:
        places = [_unshifted(one.place, dropped) for one in placed]
        raise client_error(error, places, before) from None


def _unshifted(place: int | None, dropped: range) -> int | None:
    """The index in the whole conversation."""
    return place if place is None or place < dropped.start else place + len(dropped)
