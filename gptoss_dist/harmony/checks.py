"""Small checks of what comes from outside, each a PromptError that says where."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from gptoss_dist.errors import PromptError

LONGEST_RUN = 20_000
"""Bytes in UTF-8. The encoder takes 0.15 s for it, in which no other thread of the process runs."""
_BYTES_OF_NO_CHARACTER = range(0xDC80, 0xDD00)
"""How Python keeps the bytes of an argument or of standard input that its encoding cannot read (PEP 383)."""
LONG_RUN = 1_000
"""Bytes; shorter ones cost no more than other text."""
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
        code = ord(value[error.start])
        if code in _BYTES_OF_NO_CHARACTER:
            raise PromptError(
                f"{where}: character {error.start} is the byte 0x{code & 0xFF:02x}, which does not belong there in "
                f"{sys.getfilesystemencoding()}. Write the text in UTF-8, with a locale or PYTHONUTF8=1 that says so."
            ) from error
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


def check_together(texts: Iterable[str]) -> None:
    """Raise PromptError where the texts of one prompt, each of which passed `check_text`, take too long together."""
    kept = list(texts)
    if sum(map(len, kept)) * 4 <= LONGEST_RUN:
        return
    for kind in _RUNS:
        lengths = [length for text in kept for length in _runs(kind, text, LONG_RUN)]
        if sum(length * length for length in lengths) > LONGEST_RUN * LONGEST_RUN:
            raise PromptError(
                f"the prompt has {len(lengths)} runs of {LONG_RUN} bytes or more that are all white space, all symbols "
                f"or all letters, {sum(lengths)} bytes together: the time to encode it grows with the square of each. "
                "Break such runs."
            )


def _longest_run(text: str) -> int:
    """Bytes of the longest run; the short ones, nearly all, are not looked at twice."""
    return max((length for kind in _RUNS for length in _runs(kind, text, LONGEST_RUN)), default=0)


def _runs(kind: re.Pattern[str], text: str, least: int) -> Iterator[int]:
    """Bytes of the runs of a kind that have at least `least`."""
    runs = (run[0] for run in kind.finditer(text) if 4 * (run.end() - run.start()) > least)
    return (length for run in runs if (length := len(run.encode())) >= least)
