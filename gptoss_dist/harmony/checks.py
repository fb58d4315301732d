"""Small checks of what comes from outside, each a PromptError that says where."""

from __future__ import annotations

from typing import Any

from gptoss_dist.errors import PromptError


def check_text(value: Any, where: str) -> str:
    """`value` when it is a string that UTF-8 can hold. Raises PromptError for anything else.

    JSON lets half of a surrogate pair through (`"\\ud83d"`), which no tokenizer can encode.
    """
    if not isinstance(value, str):
        raise PromptError(f"{where}: expected text, found {type(value).__name__}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{where}: character {error.start} is half of a surrogate pair; send the whole character."
        ) from error
    return value
