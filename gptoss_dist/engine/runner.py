"""Runs batches through the loaded weights over a paged cache of its own. Knows tensors and no requests.

    batch of decoding sequences only ─► buffers ─► CUDA graph of the step (`graphs`) ─┐
    any other batch ─────────────────────────────► the step, kernel by kernel ────────┴─► logits of this rank's columns

Shape legend: T tokens of the step, H hidden, K key-value heads of this rank, D head size, P pages, B tokens a page,
R rows that choose a token, S decoding sequences, V rows of the vocabulary here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from gptoss_dist.engine.batch import Batch
from gptoss_dist.engine.decode_buffers import DecodeBuffers, DecodeInput, DecodeOutput
from gptoss_dist.engine.graphs import CudaGraphs, DecodeSteps, Player, batch_buckets, table_widths
from gptoss_dist.engine.logits import Logits
from gptoss_dist.engine.quick import quick_tokens
from gptoss_dist.engine.reduce import choose_reducer
from gptoss_dist.engine.sampler import drawing_on
from gptoss_dist.engine.size import CacheSize
from gptoss_dist.engine.step import Cache, Chunks, Places, Step, StepInput
from gptoss_dist.engine.warm_up import prompt_sizes, warm_up, warm_up_choice
from gptoss_dist.engine.weights import Weights, take_weights
from gptoss_dist.kernels.registry import CAPTURABLE
from gptoss_dist.kernels.step_kernels import StepKernels, step_kernels
from gptoss_dist.log import get_logger
from gptoss_dist.model.load import Loaded
from gptoss_dist.plan.shard import chunk
from gptoss_dist.runtime.dist import RankGroup
from gptoss_dist.runtime.mesh import Ranks
from gptoss_dist.schema import EngineConf, ExpertKernel

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
        self._decode: DecodeSteps | None = None
        problem = graphs_problem(conf, self._weights, kernels, loaded.kernels.experts)
        if problem is None:
            pages = -(-min(self._weights.context, size.full_pages * conf.page_size) // conf.page_size)
            player = CudaGraphs(device)
            self._decode = prepare_decode(self._step, self._logits, self._weights, conf, pages, player)
        graphs = self._decode.summary if self._decode else f"no CUDA graphs ({problem})"
        logger.info("engine: %s", "; ".join(part for part in (loaded.kernels.step_reason, sums.reason, graphs) if part))

    def close(self) -> None:
        """Destroy the graphs: a process group waits, when it ends, for those that hold its collectives."""
        if self._decode is not None:
            self._decode.close()
            self._decode = None

    @property
    def cache_bytes(self) -> int:
        """Bytes of all pages on this rank."""
        return sum(pages.nbytes for pages in self._pages)

    @torch.no_grad()
    def run(self, batch: Batch) -> Logits:
        """Logits after the rows that choose a token; fills the pages of all tokens of the batch.

        They stay as they are until the next batch runs.
        """
        if self._decode is not None and batch.decode_only:
            output = self._decode.run(decode_input(batch))
            return self._logits(output.logits_SV, quick_R=output.tokens_S)
        return self._logits(self._step(step_input(batch)))


@torch.no_grad()
def prepare_decode(
    step: Step, logits: Callable[[torch.Tensor], Logits], weights: Weights, conf: EngineConf, pages: int, player: Player
) -> DecodeSteps:
    """The steps that only decode and choose, over buffers for the largest batch; `pages` of the longest table."""
    most, device, drawing = conf.max_running, weights.device, drawing_on(weights.device)

    def compute(rows: DecodeInput, output: DecodeOutput) -> None:
        step(rows.as_step(), output.logits_SV)
        output.tokens_S.copy_(quick_tokens(drawing, logits(output.logits_SV), rows.draw))

    output = DecodeOutput(
        logits_SV=weights.head_VH.new_zeros(most, weights.head_VH.shape[0]),
        tokens_S=torch.zeros(most, dtype=torch.int64, device=device),
    )
    buffers = DecodeBuffers(most, pages, device)
    return DecodeSteps(compute, buffers, output, player, batch_buckets(most), table_widths(pages, conf.page_size))


def graphs_problem(conf: EngineConf, weights: Weights, kernels: StepKernels, experts: ExpertKernel) -> str | None:
    """Why steps cannot be CUDA graphs here; None if they can."""
    if not conf.graphs:
        return "engine.graphs=false"
    if weights.device.type != "cuda":
        return f"there are none on {weights.device.type}"
    if not kernels.capturable:
        return "plain torch reads values back from the device"
    if not weights.packed or experts not in CAPTURABLE:
        return "only kernels.experts=cuda and triton can be part of one"
    return None


def allocate_cache(weights: Weights, size: CacheSize, page_size: int) -> list[torch.Tensor]:
    """[2, P, B, K, D] for each layer: keys, then values."""
    heads = (page_size, weights.kv_heads, weights.head_size)
    return [
        weights.head_VH.new_zeros(2, size.sliding_pages if layer.sliding else size.full_pages, *heads)
        for layer in weights.layers
    ]


def step_input(batch: Batch) -> StepInput:
    """A batch as the model's step takes it."""
    chunks = Chunks(batch.first_C, batch.count_C, batch.start_C, batch.longest)
    return StepInput(
        ids_T=batch.ids_T,
        position_T=batch.positions_T,
        decoding=batch.decoding,
        full=Places(batch.full_slots_T, batch.full_table_SN, batch.full_table_CN),
        sliding=Places(batch.sliding_slots_T, batch.sliding_table_SN, batch.sliding_table_CN),
        chunks=None if batch.decode_only else chunks,
        sampled_R=None if batch.decode_only else batch.sampled,
    )


def decode_input(batch: Batch) -> DecodeInput:
    """A batch of decoding sequences only, all of which choose a token, as the graphs take it."""
    return DecodeInput(
        ids_S=batch.ids_T,
        position_S=batch.positions_T,
        full_slot_S=batch.full_slots_T,
        sliding_slot_S=batch.sliding_slots_T,
        full_table_SN=batch.full_table_SN,
        sliding_table_SN=batch.sliding_table_SN,
        temperature_S=batch.draw.temperature_R,
        seed_S=batch.draw.seed_R,
        place_S=batch.draw.position_R,
    )
