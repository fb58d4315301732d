"""How many pages a cache has: from what is asked for, or from what is free on the tightest rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gptoss_dist.engine.prefix import ample_sliding_pages
from gptoss_dist.errors import DoesNotFitError
from gptoss_dist.model.load import Loaded
from gptoss_dist.runtime.dist import RankGroup
from gptoss_dist.schema import EngineConf

_CPU_TOKENS = 32768
"""Tokens of cache on a CPU where none are asked for: the toy's is small, and memory there is shared with others."""


@dataclass(frozen=True)
class CacheSize:
    """Pages of the layers with full attention, and of the sliding layers."""

    full_pages: int
    sliding_pages: int


def cache_size(conf: EngineConf, loaded: Loaded, group: RankGroup) -> CacheSize:
    """The same size on every rank. Collective. Raises DoesNotFitError with the numbers if the cache has no room."""
    shape, size = loaded.checkpoint.shape, conf.page_size
    windows = ample_sliding_pages(shape.sliding_window, size, conf.step_tokens, conf.max_running)
    page_bytes = loaded.planned.cache_per_token * size
    sliding_bytes = windows * loaded.planned.cache_window // shape.sliding_window * size
    free = _free(group.device, conf)
    if conf.cache_tokens is not None:
        pages = -(-conf.cache_tokens // size)
    elif free is None:
        pages = _CPU_TOKENS // size
    else:
        pages = max(0, (free - sliding_bytes) // page_bytes)
    pages = min(group.all_gather_object(pages))
    needed = pages * page_bytes + sliding_bytes
    if pages < 1 or (free is not None and needed > free):
        raise DoesNotFitError(
            f"rank {group.rank}: the cache of {pages * size} tokens takes {needed / 1e9:.2f} GB beside the weights, "
            f"and {(free or 0) / 1e9:.2f} GB are free (engine.memory_fraction={conf.memory_fraction}). Lower "
            "engine.cache_tokens or engine.max_running, or take more ranks."
        )
    return CacheSize(pages, windows)


def _free(device: torch.device, conf: EngineConf) -> int | None:
    """Bytes of a GPU that the cache may take; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0] * conf.memory_fraction)
