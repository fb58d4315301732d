"""The one place where `response_format` and `tool_choice` become a constraint on the tokens of an answer."""

from __future__ import annotations

from gptoss_dist.engine.request import Constraint
from gptoss_dist.errors import ConfigError, PromptError
from gptoss_dist.harmony.grammar import constraint_for
from gptoss_dist.server.api_error import from_error
from gptoss_dist.server.chat_request import ChatRequest


def constraint_of(body: ChatRequest) -> Constraint | None:
    """What goes into `Request.constraint`; None: the model writes what it likes. Raises ApiError (400)."""
    offer = body.offer
    try:
        return constraint_for(
            body.response_format,
            offer.tools,
            offer.choice,
            body.parallel_tool_calls is not False,
        )
    except (ConfigError, PromptError) as error:
        raise from_error(error) from None
