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


def add_routes_norm(
    residual_TH: torch.Tensor,
    rows_PH: torch.Tensor,
    index_P: torch.Tensor,
    experts: int,
    weight_H: torch.Tensor,
    epsilon: float,
) -> torch.Tensor:
    """`add_norm` of the sum of each token's routes: row t·K + k of `rows_PH` is what expert k gave token t, weighted.

    The sum is float32, in the order of the routes. Routes whose `index_P` is not among 0 … `experts` − 1 belong to
    another rank: they add nothing, and their rows may hold anything.
    """
    tokens, hidden = residual_TH.shape
    here_P1 = ((index_P >= 0) & (index_P < experts)).view(-1, 1)
    rows_TKH = torch.where(here_P1, rows_PH, 0).view(tokens, -1 if tokens else 1, hidden)
    total_TH = torch.zeros_like(rows_TKH[:, 0])
    for row_TH in rows_TKH.unbind(1):
        total_TH += row_TH
    return add_norm(residual_TH, total_TH, weight_H, epsilon)
