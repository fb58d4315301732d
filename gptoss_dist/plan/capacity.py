"""What a GPU has room for beside the weights: tokens of cache, requests, the longest context. Pure arithmetic.

A share of the memory stays free, as `engine.memory_fraction` says, and a fixed reserve covers CUDA's own context, the
activations of a step and captured graphs; what the engine really finds free it measures when it starts.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptoss_dist.memory import RankMemory
from gptoss_dist.shapes import Shape

RESERVE_BYTES = 2 << 30


@dataclass(frozen=True)
class Capacity:
    """Of one replica, decided by its tightest rank; bytes and tokens."""

    free_bytes: int
    """For the cache, on the tightest rank; negative: the weights alone do not fit."""
    longest_context: int
    """Of one request that is alone."""
    requests: int
    """That fit at once, each with the context asked for."""

    @property
    def fits(self) -> bool:
        """Whether at least one request of the context asked for fits."""
        return self.requests > 0


def capacity(shape: Shape, ranks: list[RankMemory], memory_bytes: int, fraction: float, context: int) -> Capacity:
    """What fits on GPUs of `memory_bytes`, each holding one of `ranks`."""
    tightest = min(ranks, key=lambda rank: memory_bytes - rank.weights)
    free = int((memory_bytes - RESERVE_BYTES - tightest.weights) * fraction)
    longest = min(shape.max_position, max(0, free - tightest.cache_window) // tightest.paged_per_token)
    request = context * tightest.paged_per_token + tightest.cache_window
    requests = max(0, free) // request if context <= longest else 0
    return Capacity(free, longest, requests)
