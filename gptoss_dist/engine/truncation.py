"""Tokens that are left out of the draw, for all rows of a block at once: temperature, then top-k, top-p, min-p.

Min-p as in arXiv:2407.01082, top-p as in `gptoss_dist.kernels.nucleus_reference`. What one row keeps depends on no
other.

Shape legend: L careful rows of a step, K of them that are cut, N of those with a nucleus (top-p), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from gptoss_dist.engine.request import Sampling
from gptoss_dist.engine.staging import Staging
from gptoss_dist.kernels import nucleus_reference
from gptoss_dist.kernels.nucleus_reference import WHOLE

KeepNucleus = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
"""See `gptoss_dist.kernels.nucleus_reference.keep_nucleus`."""


class Truncation(NamedTuple):
    """How K of the careful rows of a step are cut; where a row asks for no cut of a kind, its number cuts nothing."""

    rows_K: torch.Tensor
    """int64: which of L."""
    temperature_K1: torch.Tensor
    """float32, above 0."""
    top_k_K1: torch.Tensor
    """int64, V for all."""
    most: int
    """The largest top-k that cuts; 0 if none does."""
    min_p_K1: torch.Tensor
    """float32."""
    nucleus_N: torch.Tensor
    """int64: which of K have a nucleus."""
    top_p_N: torch.Tensor
    """int64: in parts of `WHOLE`."""


def truncation_of(samplings: Sequence[Sampling], vocabulary: int, staging: Staging) -> Truncation | None:
    """That of the careful rows of a step, in their order; None if none is cut."""
    cut = [number for number, one in enumerate(samplings) if one.cuts]
    if not cut:
        return None
    chosen = [samplings[number] for number in cut]
    top_ks = [min(one.top_k or vocabulary, vocabulary) for one in chosen]
    nucleus = [number for number, one in enumerate(chosen) if one.top_p < 1]
    rows_K, top_k_K, nucleus_N, top_p_N, temperature_K, min_p_K = staging.send([
        (torch.int64, cut),
        (torch.int64, top_ks),
        (torch.int64, nucleus),
        (torch.int64, [math.ceil(chosen[number].top_p * WHOLE) for number in nucleus]),
        (torch.float32, [one.temperature for one in chosen]),
        (torch.float32, [one.min_p for one in chosen]),
    ])  # fmt: skip
    most = max((top_k for top_k in top_ks if top_k < vocabulary), default=0)
    temperature_K1, top_k_K1, min_p_K1 = (part.unsqueeze(1) for part in (temperature_K, top_k_K, min_p_K))
    return Truncation(rows_K, temperature_K1, top_k_K1, most, min_p_K1, nucleus_N, top_p_N)


def truncate(logits_LV: torch.Tensor, truncation: Truncation) -> None:
    """Put -inf in place of the float32 logits of tokens that are cut.

    Tokens as likely as the `top_k`-th all stay; among tokens as likely as the last of the nucleus the lower ids do. A
    row with a NaN keeps it.
    """
    logits_KV = logits_LV.index_select(0, truncation.rows_K)
    # Shifted, so that no temperature overflows.
    scores_KV = (logits_KV - logits_KV.amax(dim=1, keepdim=True)).div_(truncation.temperature_K1)
    if truncation.most:
        best_KM = scores_KV.topk(truncation.most, dim=1).values
        last_K1 = best_KM.gather(1, truncation.top_k_K1.clamp(max=truncation.most) - 1)
        last_K1 = last_K1.masked_fill(truncation.top_k_K1 > truncation.most, -torch.inf)
        scores_KV.masked_fill_(scores_KV < last_K1, -torch.inf)
    probabilities_KV = scores_KV.softmax(dim=1)
    if len(truncation.nucleus_N):
        keep = nucleus_on(probabilities_KV.device)
        keep(probabilities_KV, truncation.nucleus_N, truncation.top_p_N)
    floor_K1 = truncation.min_p_K1 * probabilities_KV.amax(dim=1, keepdim=True)
    cut_KV = (probabilities_KV == 0).logical_or_(probabilities_KV < floor_K1)
    logits_LV.index_copy_(0, truncation.rows_K, logits_KV.masked_fill_(cut_KV, -torch.inf))


def nucleus_on(device: torch.device) -> KeepNucleus:
    """The kernels on a GPU, plain torch elsewhere; both keep the same tokens."""
    if device.type == "cuda":
        from gptoss_dist.kernels import nucleus_triton

        return nucleus_triton.keep_nucleus
    return nucleus_reference.keep_nucleus
