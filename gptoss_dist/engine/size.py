"""How many pages a cache has: from what is asked for, or from what is free on the tightest rank.

    free after the weights × engine.memory_fraction = workspace of a step + cache of sliding layers + cache of full ones

The sliding layers have pages for the windows of all that run, and one more for every `KEPT_WINDOWS` full pages, for the
windows that later prompts go on from: without them the full pages of a prefix would be of no use (`page_tables.py`).
The workspace is an upper bound by arithmetic, not a measurement: what the largest step allocates, logits, page
tables, graphs, and what ranks map of each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from gptoss_dist.engine.graphs import MOST_WIDTHS, batch_buckets
from gptoss_dist.engine.page_needs import ample_sliding_pages, sliding_pages
from gptoss_dist.engine.prompt_steps import prompt_buckets
from gptoss_dist.engine.reduce import pushed_rows
from gptoss_dist.errors import DoesNotFitError
from gptoss_dist.kernels.all_reduce_push import SLOTS
from gptoss_dist.kernels.attention_splits import split_bytes
from gptoss_dist.memory import KEPT_WINDOWS
from gptoss_dist.model.load import Loaded, local
from gptoss_dist.runtime.dist import RankGroup
from gptoss_dist.schema.engine import EngineConf
from gptoss_dist.shapes import Shape

_FLOAT32 = _INT32 = 4
_CAREFUL_BYTES = 32
"""Of each token of the vocabulary, for a carefully chosen request, at most: 10 of what was said, in a table that
doubles as it grows, and 22 while penalties are computed from it (logits twice, counts, two products, masks). What cuts
take after that is less: logits, the list of tokens where a border may be, and what is left."""
_GRAPH_BYTES = 8 << 20
"""Of the driver, for each CUDA graph of some 400 kernels: an allowance."""
_TABLES_OF_GRAPHS = 3
"""Copies of the tables that graphs read: one where all decode, two beside prompts."""
_STEPS = (8192, 4096)
"""Tokens a step that are tried on GPUs where none are asked for: the more rows a weight serves, the faster a prompt."""
_STEP_SHARE = 4
"""What such a step takes beside the cache of full layers is at most the n-th part of what is free."""
_CPU_TOKENS = 32768
"""Tokens of cache on a CPU where none are asked for: the toy's is small, and memory there is shared with others."""


@dataclass(frozen=True)
class CacheSize:
    """Pages of the layers with full attention, and of the sliding layers."""

    full_pages: int
    sliding_pages: int


@dataclass(frozen=True)
class Workspace:
    """Bytes beside weights and cache."""

    activations: int
    """Of one layer, in the largest step."""
    experts: int
    """Rows of the experts' two products, a row for each token and expert it goes to."""
    logits: int
    """Of every running request: this rank's columns, and the whole vocabulary for those who look at it."""
    graphs: int
    """What the driver keeps for them, and the memory that their steps share, which is theirs alone."""
    tables: int
    """Page tables of all running requests, of the longest context: kept, picked for a step, and in graphs' buffers."""
    splits: int
    """What the parts of a decoding step's attention leave to be joined, in one layer; graphs have their own."""
    sums: int
    """Memory that the ranks of a replica map of each other."""

    @property
    def total(self) -> int:
        """All of it."""
        one_step = self.activations + self.experts + self.logits + self.splits
        return one_step + self.graphs + self.tables + self.sums


def workspace(shape: Shape, conf: EngineConf, value_bytes: int, columns: int, ranks: int) -> Workspace:
    """For activations of `value_bytes` each, and a rank with `columns` of the vocabulary, of `ranks` in its replica.

    Counted as if one rank had all heads and whole experts: cuts make it smaller.
    """
    heads = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim
    # Residual, its norm, the sum and its float32 copies; queries, keys, values and the attention's output.
    token = (4 * shape.hidden + 2 * heads) * value_bytes + 3 * shape.hidden * _FLOAT32
    # Gate and up, the product of both, and what comes out, which is summed in float32.
    route = 3 * shape.intermediate * value_bytes + 2 * shape.hidden * _FLOAT32
    row = 2 * columns * value_bytes + shape.vocab * _CAREFUL_BYTES
    graphs, captured = captured_steps(conf)
    tables = 2 * conf.max_running * -(-shape.max_position // conf.page_size) * _INT32
    pushed = pushed_rows(conf.max_running, ranks) * ranks if ranks > 1 else 0
    return Workspace(
        activations=conf.tokens_a_step * token,
        experts=conf.tokens_a_step * shape.experts_per_token * route,
        logits=conf.max_running * row,
        graphs=graphs * _GRAPH_BYTES + captured * (token + shape.experts_per_token * route),
        tables=tables * (_TABLES_OF_GRAPHS + 2 if conf.graphs else 2),
        splits=split_bytes(conf.max_running, shape.heads, shape.head_dim) * (2 if conf.graphs else 1),
        sums=SLOTS * pushed * shape.hidden * _INT32,
    )


def captured_steps(conf: EngineConf) -> tuple[int, int]:
    """How many CUDA graphs there are at most, and rows of the largest."""
    if not conf.graphs:
        return 0, 0
    prompts = prompt_buckets(conf.tokens_a_step)
    graphs = len(batch_buckets(conf.max_running)) * MOST_WIDTHS + 2 * len(prompts)
    return graphs, conf.max_running + max(prompts, default=0)


def chosen_step(conf: EngineConf, loaded: Loaded, group: RankGroup) -> EngineConf:
    """`conf` with `step_tokens`: the same on every rank, as many as leave room for the cache. Collective."""
    if conf.step_tokens is not None:
        return conf
    free, chosen = free_bytes(group.device, conf), conf.tokens_a_step
    if free is not None:
        asked = (conf.cache_tokens or 0) * loaded.planned.paged_per_token
        for tokens in _STEPS:
            taken = _beside(replace(conf, step_tokens=tokens), loaded)
            if tokens > chosen and taken <= free // _STEP_SHARE and taken + asked <= free:
                chosen = tokens
                break
    return replace(conf, step_tokens=min(group.all_gather_object(chosen)))


def cache_size(conf: EngineConf, loaded: Loaded, group: RankGroup) -> CacheSize:
    """The same size on every rank. Collective. Raises DoesNotFitError with the numbers if the cache has no room."""
    size = conf.page_size
    page_bytes, sliding_bytes = loaded.planned.cache_per_token * size, _sliding_page_bytes(conf, loaded)
    beside = _workspace_of(conf, loaded).total
    free = free_bytes(group.device, conf)
    if conf.cache_tokens is not None:
        pages = -(-conf.cache_tokens // size)
    elif free is None:
        pages = _CPU_TOKENS // size
    else:
        room = free - beside - _ample(conf, loaded) * sliding_bytes
        pages = max(0, room * KEPT_WINDOWS // (page_bytes * KEPT_WINDOWS + sliding_bytes))
    pages = min(group.all_gather_object(pages))
    window = loaded.checkpoint.shape.sliding_window
    sliding = sliding_pages(window, size, conf.tokens_a_step, conf.max_running, pages)
    needed = pages * page_bytes + sliding * sliding_bytes
    if pages < 1 or (free is not None and needed + beside > free):
        raise DoesNotFitError(
            f"rank {group.rank}: the cache of {pages * size} tokens takes {needed / 1e9:.2f} GB beside the weights, "
            f"the engine's steps up to {beside / 1e9:.2f} GB, and {(free or 0) / 1e9:.2f} GB are free "
            f"(engine.memory_fraction={conf.memory_fraction}). Lower engine.cache_tokens, engine.step_tokens or "
            "engine.max_running, or take more ranks."
        )
    return CacheSize(pages, sliding)


def _ample(conf: EngineConf, loaded: Loaded) -> int:
    """Pages of the sliding layers that are always enough for those that run."""
    window = loaded.checkpoint.shape.sliding_window
    return ample_sliding_pages(window, conf.page_size, conf.tokens_a_step, conf.max_running)


def _sliding_page_bytes(conf: EngineConf, loaded: Loaded) -> int:
    """Of one page in all sliding layers, on this rank."""
    return loaded.planned.cache_window // loaded.checkpoint.shape.sliding_window * conf.page_size


def _beside(conf: EngineConf, loaded: Loaded) -> int:
    """Bytes that steps take beside weights, the cache of full layers and kept windows."""
    return _workspace_of(conf, loaded).total + _ample(conf, loaded) * _sliding_page_bytes(conf, loaded)


def _workspace_of(conf: EngineConf, loaded: Loaded) -> Workspace:
    head = local(loaded.model.lm_head.weight)
    return workspace(loaded.checkpoint.shape, conf, head.element_size(), head.shape[0], loaded.degrees.tp)


def free_bytes(device: torch.device, conf: EngineConf) -> int | None:
    """Bytes of a GPU that cache and steps may take; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0] * conf.memory_fraction)
