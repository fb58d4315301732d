"""Attention with sinks over a paged cache in plain torch: slow, obvious, on any device; the reference of fast kernels.

Each head has a learned sink, a logit without a value that takes its share of the softmax (`eager_attention_forward` of
transformers' models/gpt_oss/modeling_gpt_oss.py). A query at position p sees positions p − window + 1 … p, or all up to
p without a window.

Shape legend: T tokens of the step, N new tokens of one chunk, S cached tokens it sees, Q query heads, K key-value heads
of this rank, G = Q / K, D head size, P pages, B tokens a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Span:
    """One chunk of one request: `count` tokens of the step from `first` on, at positions `start`, `start` + 1, …"""

    first: int
    count: int
    start: int
    table: Sequence[int]
    """Page of each block of B positions; -1 where a sliding layer has let it go."""


def paged_attention(
    query_TQD: torch.Tensor,
    key_PBKD: torch.Tensor,
    value_PBKD: torch.Tensor,
    spans: Sequence[Span],
    sinks_Q: torch.Tensor,
    window: int | None,
) -> torch.Tensor:
    """[T, Q, D] in the dtype of the query; the softmax is float32 or wider. The new keys are in their pages already."""
    out_TQD = torch.empty_like(query_TQD)
    for span in spans:
        rows = slice(span.first, span.first + span.count)
        out_TQD[rows] = _one(query_TQD[rows], key_PBKD, value_PBKD, span, sinks_Q, window)
    return out_TQD


def _one(
    query_NQD: torch.Tensor,
    key_PBKD: torch.Tensor,
    value_PBKD: torch.Tensor,
    span: Span,
    sinks_Q: torch.Tensor,
    window: int | None,
) -> torch.Tensor:
    page_size, device = key_PBKD.shape[1], query_NQD.device
    end = span.start + span.count
    block = 0 if window is None else max(0, span.start - window + 1) // page_size
    pages = torch.tensor(span.table[block : -(-end // page_size)], device=device)
    position_S = torch.arange(block * page_size, end, device=device)
    key_SKD = key_PBKD[pages].flatten(0, 1)[: len(position_S)]
    value_SKD = value_PBKD[pages].flatten(0, 1)[: len(position_S)]
    position_N1 = torch.arange(span.start, end, device=device).unsqueeze(1)
    seen_NS = position_S <= position_N1
    if window is not None:
        seen_NS &= position_S > position_N1 - window
    wide = torch.promote_types(query_NQD.dtype, torch.float32)
    query_NKGD = (
        query_NQD.view(span.count, key_SKD.shape[1], -1, query_NQD.shape[-1]).to(wide) * query_NQD.shape[-1] ** -0.5
    )
    score_KGNS = torch.einsum("nkgd,skd->kgns", query_NKGD, key_SKD.to(wide)).masked_fill(~seen_NS, -torch.inf)
    sink_KGN1 = sinks_Q.to(wide).view(*score_KGNS.shape[:2], 1, 1).expand(*score_KGNS.shape[:3], 1)
    weight_KGNS = torch.cat((score_KGNS, sink_KGN1), dim=-1).softmax(dim=-1)[..., :-1]
    out_NKGD = torch.einsum("kgns,skd->nkgd", weight_KGNS, value_SKD.to(wide))
    return out_NKGD.flatten(1, 2).to(query_NQD.dtype)
