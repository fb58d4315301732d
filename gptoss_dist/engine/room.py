"""What a cache has room for, whoever runs: which requests could be finished at all, and how many of a kind together."""

from __future__ import annotations

from dataclasses import dataclass

from gptoss_dist.engine.page_needs import PageCounts, needed_pages
from gptoss_dist.engine.request import Request
from gptoss_dist.errors import DoesNotFitError


@dataclass(frozen=True)
class Room:
    """Of so many pages, for at most `max_running` requests."""

    pages: PageCounts
    page_size: int
    """Tokens a page."""
    window: int
    """Positions that a query of a sliding layer sees."""
    max_running: int

    def needed(self, request: Request) -> PageCounts:
        """Pages without which the request could not be finished, even alone."""
        return needed_pages(len(request.prompt) + request.sampling.max_tokens, self.window, self.page_size)

    def check(self, request: Request) -> None:
        """Raise DoesNotFitError if the request could not be finished, even alone."""
        needed = self.needed(request)
        if needed.full > self.pages.full or needed.sliding > self.pages.sliding:
            raise DoesNotFitError(
                f"request {request.id}: {len(request.prompt)} prompt tokens and up to {request.sampling.max_tokens} "
                f"new ones need {needed.full} pages of {self.page_size} tokens in full and {needed.sliding} in sliding "
                f"layers, and the cache has {self.pages.full} and {self.pages.sliding}. Raise engine.cache_tokens, "
                "take more ranks, or lower generation.max_new_tokens."
            )

    def at_once(self, request: Request) -> int:
        """How many requests like this one can run at once without that one gives way, if sliding pages are ample."""
        return min(self.max_running, self.pages.full // self.needed(request).full)
