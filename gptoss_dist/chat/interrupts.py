"""Ctrl-C in a chat ends the turn, and not the chat."""

from __future__ import annotations


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """The user ended the turn while typing. (While an answer comes it is the model that is told.)"""
