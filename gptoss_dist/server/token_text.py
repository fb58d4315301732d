"""Tokens one by one, and their log probabilities, as answers write them."""

from __future__ import annotations

import functools

from gptoss_dist.harmony.vocab import load_encoding

_LEAST = -9999.0
"""What OpenAI writes for a token that cannot come; JSON has no infinity."""


@functools.lru_cache(maxsize=16384)
def token_bytes(token: int) -> bytes:
    """The bytes that a token of text stands for, which need not be whole characters."""
    text: str = load_encoding().decode([token], errors="surrogateescape")
    return text.encode("utf-8", "surrogateescape")


def token_text(token: int) -> str:
    """A token of text by itself."""
    return token_bytes(token).decode(errors="replace")


def finite(logprob: float) -> float:
    """A log probability as JSON can hold it."""
    return max(logprob, _LEAST)
