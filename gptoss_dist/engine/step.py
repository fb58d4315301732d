"""One step of the model: tokens and where their keys and values go ──► logits of this rank's part of the vocabulary.

    embed ─► norm ─► [ qkv ─► rotate, store ─► attention ─► output ─► sum + bias + residual + norm
                       ─► route ─► experts ─► sum + residual + next layer's norm ] × layers ─► rows that sample ─► head

Sums go over the ranks only where the plan cuts (`Split`). Nothing here reads a value back from the device or depends on
one, except what the references in plain torch do: with the fused kernels the decode step can be a CUDA graph. Rounding
follows the model's own forward (transformers' models/gpt_oss/modeling_gpt_oss.py): activations and residual in the
model's number format, norms and softmax inside in float32. One rounding is saved where a rank alone adds the sum of its
routes to the residual.

Shape legend: T tokens of the step, S of which are decoding sequences, N pages a table, C chunks (see `step_input`), but
columns of projections; R rows that sample; H hidden, Q query and K key-value heads here, D head size; P pages or, with
experts, the T · top_k routes; B tokens a page; V rows of the vocabulary here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from gptoss_dist.engine.step_input import Places, StepInput
from gptoss_dist.engine.weights import LayerWeights, Weights
from gptoss_dist.kernels.all_reduce_reference import LocalReducer
from gptoss_dist.kernels.reducer import Norm, Reducer, Routes
from gptoss_dist.kernels.step_kernels import StepKernels
from gptoss_dist.kernels.turning import Heads, Turning


class Cache(NamedTuple):
    """The pages of one layer."""

    key_PBKD: torch.Tensor
    value_PBKD: torch.Tensor


class Step:
    """The model's layers on this rank."""

    def __init__(self, weights: Weights, kernels: StepKernels, cache: Sequence[Cache], reducer: Reducer) -> None:
        """`reducer` sums over the ranks of the replica; parts that the plan leaves whole do without it."""
        self._weights, self._kernels, self._cache = weights, kernels, tuple(cache)
        self._heads = Heads(weights.query_heads, weights.kv_heads, weights.head_size)
        split, alone = weights.split, LocalReducer(kernels.add_norm, kernels.add_routes_norm)
        self._sum_embedding = reducer if split.embedding else alone
        self._sum_attention = reducer if split.attention else alone
        self._sum_experts = reducer if split.experts else alone

    @torch.no_grad()
    def __call__(self, step: StepInput, logits_RV: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [R, V] of this rank's rows of the vocabulary, in the model's number format.

        They go into `logits_RV` if it is given.
        """
        weights, kernels = self._weights, self._kernels
        part_TH = kernels.embed(step.ids_T, weights.embedding_VH, weights.embedding_first)
        residual_TH = self._sum_embedding.reduce(part_TH)
        normed_TH = kernels.add_norm(residual_TH, None, weights.layers[0].input_norm_H, weights.epsilon)
        turns = kernels.rotary_angles(
            step.position_T, weights.inverse_frequency_F, weights.attention_scaling, normed_TH.dtype
        )
        last = len(weights.layers) - 1
        for number, (layer, cache) in enumerate(zip(weights.layers, self._cache, strict=True)):
            out_TC = self._attend(layer, cache, normed_TH, turns, step)
            if number == last and step.sampled_R is not None:  # of the others only keys and values were wanted
                out_TC, residual_TH = out_TC[step.sampled_R], residual_TH[step.sampled_R]
                if not len(step.sampled_R):
                    return normed_TH.new_empty(0, weights.head_VH.shape[0])
            normed_TH, index_TK, weight_TK = self._end_attention(layer, out_TC, residual_TH)
            after_H = weights.final_norm_H if number == last else weights.layers[number + 1].input_norm_H
            normed_TH = self._add_experts(layer, normed_TH, index_TK, weight_TK, residual_TH, after_H)
        return torch.mm(normed_TH, weights.head_VH.t(), out=logits_RV)

    def _attend(
        self,
        layer: LayerWeights,
        cache: Cache,
        normed_TH: torch.Tensor,
        turns: tuple[torch.Tensor, torch.Tensor],
        step: StepInput,
    ) -> torch.Tensor:
        """What this rank's heads see, [T, Q·D]; their keys and values are in the cache from here on."""
        kernels = self._kernels
        places = step.sliding if layer.sliding else step.full
        turning = Turning(*turns, places.slot_T, *cache, self._heads)
        if kernels.begin_attention is not None:
            query_TQD = kernels.begin_attention(normed_TH, layer.qkv_CH, layer.qkv_bias_C, turning)
        else:
            qkv_TC = kernels.project(normed_TH, layer.qkv_CH, layer.qkv_bias_C)
            query_TQD = kernels.rotate_and_store(qkv_TC, turning)
        return self._look(layer, cache, query_TQD, places, step).flatten(1)

    def _end_attention(
        self, layer: LayerWeights, out_TC: torch.Tensor, residual_TH: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Output projection, its sum over the ranks, the residual in place, norm and choice of experts.

        The normed rows [T, H], and the experts [T, top_k] and their weights.
        """
        weights, kernels, cut = self._weights, self._kernels, self._weights.split.attention
        router = (layer.router_EH, layer.router_bias_E, weights.top_k)
        projection = (out_TC, layer.output_HC, layer.output_bias_H)
        norm = Norm(residual_TH, layer.post_norm_H, weights.epsilon)
        if kernels.end_attention is not None and not cut:
            return kernels.end_attention(*projection, *norm, *router)
        normed_TH = self._sum_attention.reduce_add_norm(kernels.project(*projection), norm)
        return normed_TH, *kernels.route(normed_TH, *router)

    def _add_experts(
        self,
        layer: LayerWeights,
        normed_TH: torch.Tensor,
        index_TK: torch.Tensor,
        weight_TK: torch.Tensor,
        residual_TH: torch.Tensor,
        after_H: torch.Tensor,
    ) -> torch.Tensor:
        """The experts' sum is added to the residual in place; the norm of that, [T, H].

        Where the experts' kernel gives a row for each route, what sums over the ranks sums those too: one launch where
        a rank is alone or pushes to the others.
        """
        weights = self._weights
        if weights.first_expert:
            index_TK = index_TK - weights.first_expert
        norm = Norm(residual_TH, after_H, weights.epsilon)
        if layer.expert_rows is None:
            return self._sum_experts.reduce_add_norm(layer.experts(normed_TH, index_TK, weight_TK), norm)
        rows_PH = layer.expert_rows(normed_TH, index_TK, weight_TK)
        routes = Routes(rows_PH, index_TK.reshape(-1), weights.expert_count)
        return self._sum_experts.reduce_add_norm(routes, norm)

    def _look(
        self, layer: LayerWeights, cache: Cache, query_TQD: torch.Tensor, places: Places, step: StepInput
    ) -> torch.Tensor:
        """Attention over the pages: decoding sequences by one kernel, chunks by the other."""
        kernels, count, chunks = self._kernels, step.decoding, step.chunks
        window = self._weights.window if layer.sliding else None
        padded = chunks is not None and chunks.padded
        out_TQD = torch.zeros_like(query_TQD) if padded else torch.empty_like(query_TQD)
        if count:
            kernels.decode_attention(
                query_TQD[:count],
                *cache,
                places.table_SN,
                step.position_T[:count],
                layer.sinks_Q,
                window,
                out_TQD[:count],
            )
        if chunks is not None:
            kernels.prefill_attention(
                query_TQD[count:],
                *cache,
                places.table_CN,
                chunks.first_C,
                chunks.count_C,
                chunks.start_C,
                layer.sinks_Q,
                window,
                chunks.longest,
                out_TQD[count:],
            )
        return out_TQD
