"""Residual add and RMSNorm in plain torch.

RMSNorm (arXiv:1910.07467) as `GptOssRMSNorm` of transformers (models/gpt_oss/modeling_gpt_oss.py) computes it: float32
inside, the weight multiplied in before the result is rounded.

Shape legend: T tokens, H hidden, K experts per token, P = T·K routes.
"""

from __future__ import annotations

import torch


def add_norm(
    residual_TH: torch.Tensor, update_TH: torch.Tensor | None, weight_H: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """`residual_TH += update_TH` in place, then the RMSNorm of the sum, [T, H] in the residual's dtype.

    The sum is formed in float32 and rounded once to the residual's dtype; the norm is that of the rounded sum. Without
    an update the residual stays as it is. `update_TH` and `weight_H` may be of other floating dtypes.
    """
    wide = torch.promote_types(residual_TH.dtype, torch.float32)
    if update_TH is not None:
        residual_TH.copy_(residual_TH.to(wide) + update_TH.to(wide))
    hidden_TH = residual_TH.to(wide)
    scale_T1 = torch.rsqrt(hidden_TH.pow(2).mean(dim=-1, keepdim=True) + epsilon)
    return (weight_H.to(wide) * (hidden_TH * scale_T1)).to(residual_TH.dtype)


def sum_routes(rows_PH: torch.Tensor, index_P: torch.Tensor, like_TH: torch.Tensor, experts: int) -> torch.Tensor:
    """The sum of each token's routes, [T, H] in the dtype of `like_TH`.

    Row t·K + k of `rows_PH` is what expert k gave token t, weighted. The sum is float32, in the order of the routes.
    Routes whose `index_P` is not among 0 … `experts` − 1 belong to another rank: they add nothing, and their rows may
    hold anything.
    """
    return _wide_sum(rows_PH, index_P, len(like_TH), experts).to(like_TH.dtype)


def add_routes_norm(
    residual_TH: torch.Tensor,
    rows_PH: torch.Tensor,
    index_P: torch.Tensor,
    experts: int,
    weight_H: torch.Tensor,
    epsilon: float,
) -> torch.Tensor:
    """`add_norm` of what `sum_routes` sums, before it is rounded."""
    total_TH = _wide_sum(rows_PH, index_P, len(residual_TH), experts)
    return add_norm(residual_TH, total_TH, weight_H, epsilon)


def _wide_sum(rows_PH: torch.Tensor, index_P: torch.Tensor, tokens: int, experts: int) -> torch.Tensor:
    here_P1 = ((index_P >= 0) & (index_P < experts)).view(-1, 1)
    wide = torch.promote_types(rows_PH.dtype, torch.float32)
    rows_TKH = torch.where(here_P1, rows_PH, 0).to(wide).view(tokens, -1 if tokens else 1, rows_PH.shape[1])
    total_TH = torch.zeros_like(rows_TKH[:, 0])
    for row_TH in rows_TKH.unbind(1):
        total_TH += row_TH
    return total_TH
