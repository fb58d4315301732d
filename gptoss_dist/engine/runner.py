"""Runs batches through the loaded weights over a paged cache of its own.

The linear layers, norms, router and experts are the loaded model's modules with the parallel styles that loading
installed on them; attention, rotary embedding and the cache are ours. Knows tensors and no requests.

Shape legend: T tokens of the step, H hidden, Q query and K key-value heads of this rank, D head size, P pages, B tokens
a page, R rows that choose a token, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from gptoss_dist.engine.batch import Batch
from gptoss_dist.kernels.attention_reference import paged_attention


class PagedRunner:
    """The model's layers, and for each of them the pages of keys and values."""

    def __init__(self, model: Any, full_pages: int, sliding_pages: int, page_size: int) -> None:
        """Allocate the cache: `full_pages` in each layer with full attention, `sliding_pages` in each sliding one."""
        self._model = model
        config = model.config
        self._head_size = config.head_dim
        self._window = config.sliding_window
        self._sliding = [kind == "sliding_attention" for kind in config.layer_types]
        first = model.model.layers[0].self_attn.k_proj.weight
        heads = first.shape[0] // self._head_size
        self._cache = [
            first.new_zeros(2, sliding_pages if sliding else full_pages, page_size, heads, self._head_size)
            for sliding in self._sliding
        ]

    @property
    def cache_bytes(self) -> int:
        """Bytes of all pages on this rank."""
        return sum(pages.nbytes for pages in self._cache)

    @torch.no_grad()
    def run(self, batch: Batch) -> torch.Tensor:
        """Logits [R, V], float32, after the rows that choose a token; fills the pages of all tokens of the batch."""
        base = self._model.model
        hidden_1TH = base.embed_tokens(batch.ids_T.unsqueeze(0))
        cos_1TD, sin_1TD = base.rotary_emb(hidden_1TH, batch.positions_T.unsqueeze(0))
        for number, layer in enumerate(base.layers):
            normed_1TH = layer.input_layernorm(hidden_1TH)
            hidden_1TH = hidden_1TH + self._attend(number, layer.self_attn, normed_1TH, cos_1TD[0], sin_1TD[0], batch)
            moe_1TH, _ = layer.mlp(layer.post_attention_layernorm(hidden_1TH))
            hidden_1TH = hidden_1TH + moe_1TH
        chosen_1RH = base.norm(hidden_1TH[:, batch.sampled])
        logits_RV: torch.Tensor = self._model.lm_head(chosen_1RH)[0].float()
        return logits_RV

    def _attend(
        self,
        number: int,
        attention: Any,
        normed_1TH: torch.Tensor,
        cos_TD: torch.Tensor,
        sin_TD: torch.Tensor,
        batch: Batch,
    ) -> torch.Tensor:
        sliding = self._sliding[number]
        shape = (normed_1TH.shape[1], -1, self._head_size)
        query_TQD = _rotate(attention.q_proj(normed_1TH).view(shape), cos_TD, sin_TD)
        key_TKD = _rotate(attention.k_proj(normed_1TH).view(shape), cos_TD, sin_TD)
        pages_2PBKD = self._cache[number]
        slots_T = batch.sliding_slots_T if sliding else batch.full_slots_T
        pages_2PBKD[0].view(-1, *key_TKD.shape[1:])[slots_T] = key_TKD
        pages_2PBKD[1].view(-1, *key_TKD.shape[1:])[slots_T] = attention.v_proj(normed_1TH).view(shape)
        out_TQD = paged_attention(
            query_TQD,
            pages_2PBKD[0],
            pages_2PBKD[1],
            batch.sliding if sliding else batch.full,
            attention.sinks,
            self._window if sliding else None,
        )
        projected: torch.Tensor = attention.o_proj(out_TQD.flatten(1).unsqueeze(0))
        return projected


def _rotate(heads_TQD: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor) -> torch.Tensor:
    """Rotary embedding (arXiv:2104.09864) with the two halves of a head as pairs; cos and sin are half a head wide."""
    first, second = heads_TQD.chunk(2, dim=-1)
    cos, sin = cos_TD.unsqueeze(1), sin_TD.unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
