"""Tokens one by one, as bytes."""

from __future__ import annotations

from gptoss_dist.harmony.vocab import load_encoding


def token_bytes(token: int) -> bytes:
    """The bytes that a token of text stands for, which need not be whole characters."""
    text: str = load_encoding().decode([token], errors="surrogateescape")
    return text.encode("utf-8", "surrogateescape")
