"""Small checks of what comes from outside, each a PromptError that says where."""

from __future__ import annotations

import re
from typing import Any

from gptoss_dist.errors import PromptError

LONGEST_RUN = 50_000  # bytes in UTF-8
# What the o200k pre-tokenizer keeps in one piece, at least: white space, symbols, letters with their marks.
_RUNS = tuple(re.compile(kind) for kind in (r"\s+", r"[^\w\s]+", r"[^\s\d!\"'(),.:;?、。，．！？：；「」『』（）]+"))


def check_text(value: Any, where: str) -> str:
    """`value` when it is a string that can be encoded. Raises PromptError for anything else.

    JSON lets half of a surrogate pair through (`"\\ud83d"`), which UTF-8 cannot hold. A run of one kind of character
    is one piece to the byte-pair encoder, whose time grows with the square of a piece; and openai-harmony 0.0.8 aborts
    on a million spaces.
    """
    if not isinstance(value, str):
        raise PromptError(f"{where}: expected text, found {type(value).__name__}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{where}: character {error.start} is half of a surrogate pair; send the whole character."
        ) from error
    longest = _longest_run(value) if 4 * len(value) > LONGEST_RUN else 0
    if longest > LONGEST_RUN:
        raise PromptError(
            f"{where}: {longest} bytes in a row are all white space, all symbols or all letters; "
            f"break such a run after at most {LONGEST_RUN}."
        )
    return value


def _longest_run(text: str) -> int:
    """Bytes of the longest run; the short ones, nearly all, are not looked at twice."""
    runs = (run[0] for kind in _RUNS for run in kind.finditer(text) if 4 * (run.end() - run.start()) > LONGEST_RUN)
    return max((len(run.encode()) for run in runs), default=0)
