"""Runs batches through the loaded weights over a paged cache of its own. Knows tensors and no requests.

    batch that only decodes, or with a short prompt ─► CUDA graph of the step (`captured`) ─┐
    any other batch ───────────────────────────────► the step, kernel by kernel ────────────┴─► this rank's logits

Shape legend: T tokens of the step, H hidden, K key-value heads of this rank, D head size, P pages, B tokens a page,
R rows that choose a token, S decoding sequences, V rows of the vocabulary here.
"""

from __future__ import annotations

from functools import partial

import torch

from gptoss_dist.engine.batch import Batch
from gptoss_dist.engine.captured import CapturedSteps, graphs_problem
from gptoss_dist.engine.graphs import CudaGraphs
from gptoss_dist.engine.logits import Logits
from gptoss_dist.engine.reduce import choose_reducer
from gptoss_dist.engine.size import CacheSize
from gptoss_dist.engine.step import Cache, Step
from gptoss_dist.engine.take_weights import take_weights
from gptoss_dist.engine.warm_up import prompt_sizes, warm_up, warm_up_choice
from gptoss_dist.engine.weights import Weights
from gptoss_dist.kernels.step_kernels import step_kernels
from gptoss_dist.log import get_logger
from gptoss_dist.model.load import Loaded
from gptoss_dist.plan.shard import chunk
from gptoss_dist.runtime.dist import RankGroup
from gptoss_dist.runtime.mesh import Ranks
from gptoss_dist.schema.engine import EngineConf

logger = get_logger(__name__)


class PagedRunner:
    """The model's layers, for each of them the pages of keys and values, and the graphs over both."""

    def __init__(self, loaded: Loaded, world: RankGroup, ranks: Ranks, conf: EngineConf, size: CacheSize) -> None:
        """Allocate the cache and capture the graphs. Collective over `world`, all ranks of the run.

        Raises KernelError if an attention was asked for that the engine lacks, PlanError for a cut it cannot use.
        """
        kernels = step_kernels(loaded.kernels.step, loaded.kernels.step_reason)
        self._weights = take_weights(loaded, ranks.tp_rank)
        group = ranks.tp_group if ranks.tp > 1 else None
        device, dtype, hidden = self._weights.device, self._weights.dtype, self._weights.hidden
        sums = choose_reducer(kernels, world, group, conf.max_running, hidden, dtype, device)
        self.reducer = sums.reducer
        """What puts the ranks' parts together."""
        self._pages = allocate_cache(self._weights, size, conf.page_size)
        self._step = Step(self._weights, kernels, [Cache(*pages_2PBKD) for pages_2PBKD in self._pages], sums.reducer)
        widths = tuple(chunk(self._weights.vocabulary, ranks.tp, rank)[1] for rank in range(ranks.tp))
        self._logits = partial(
            Logits,
            first=self._weights.head_first,
            widths=widths if self._weights.split.head else (),
            group=group,
        )
        if kernels.capturable:  # else nothing is compiled
            experts = len(self._weights.layers[0].router_EH)
            sizes = prompt_sizes(conf.tokens_a_step, self._weights.top_k, experts)
            warm_up(self._step, device, conf.page_size, sizes)
            warm_up_choice(self._weights.vocabulary, device, dtype)
        self._captured: CapturedSteps | None = None
        problem = graphs_problem(conf, self._weights, kernels, loaded.kernels.experts)
        if problem is None:
            pages = -(-min(self._weights.context, size.full_pages * conf.page_size) // conf.page_size)
            player = CudaGraphs(device)
            self._captured = CapturedSteps(self._step, self._logits, self._weights, conf, pages, player)
        graphs = self._captured.summary if self._captured else f"no CUDA graphs ({problem})"
        logger.info("engine: %s", "; ".join(part for part in (loaded.kernels.step_reason, sums.reason, graphs) if part))

    def close(self) -> None:
        """Destroy the graphs: a process group waits, when it ends, for those that hold its collectives."""
        if self._captured is not None:
            self._captured.close()
            self._captured = None

    @torch.no_grad()
    def run(self, batch: Batch) -> Logits:
        """Logits after the rows that choose a token; fills the pages of all tokens of the batch.

        They stay as they are until the next batch runs.
        """
        output = self._captured.run(batch) if self._captured else None
        if output is not None:
            return self._logits(output.logits_SV, quick_R=output.tokens_S)
        return self._logits(self._step(batch.as_step()))


def allocate_cache(weights: Weights, size: CacheSize, page_size: int) -> list[torch.Tensor]:
    """[2, P, B, K, D] for each layer: keys, then values."""
    heads = (page_size, weights.kv_heads, weights.head_size)
    return [
        weights.head_VH.new_zeros(2, size.sliding_pages if layer.sliding else size.full_pages, *heads)
        for layer in weights.layers
    ]
