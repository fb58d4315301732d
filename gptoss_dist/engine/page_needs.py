"""How many pages requests need at once. Pure arithmetic."""

from __future__ import annotations

from typing import NamedTuple

from gptoss_dist.memory import KEPT_WINDOWS


class PageCounts(NamedTuple):
    """Pages of both pools."""

    full: int
    sliding: int


def needed_pages(tokens: int, window: int, page_size: int) -> PageCounts:
    """Pages without which a request of so many tokens, prompt and answer, cannot be finished, even alone."""
    pages = -(-tokens // page_size)
    return PageCounts(pages, min(pages, window_pages(window, page_size)))


def window_pages(window: int, page_size: int) -> int:
    """The most pages of a sliding layer that a sequence needs at once if it computes one token at a time."""
    return (window + page_size - 2) // page_size + 1


def ample_sliding_pages(window: int, page_size: int, step_tokens: int, max_running: int) -> int:
    """Pages of a sliding pool that never makes a sequence wait.

    A chunk of c tokens sees window + c - 1 positions: `window_pages` and up to ceil((c - 1) / page_size) more.
    """
    return max_running * (window_pages(window, page_size) + 1) + step_tokens // page_size


def sliding_pages(window: int, page_size: int, step_tokens: int, max_running: int, full_pages: int) -> int:
    """Pages of the sliding pool beside so many full ones: ample for those that run, and kept windows."""
    return ample_sliding_pages(window, page_size, step_tokens, max_running) + full_pages // KEPT_WINDOWS
