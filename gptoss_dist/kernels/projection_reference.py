"""Matrix products of few tokens, and what is added to them, in plain torch.

Shape legend: T tokens, C columns in, O columns out.
"""

from __future__ import annotations

import torch


def project(
    x_TC: torch.Tensor, weight_OC: torch.Tensor, bias_O: torch.Tensor | None, residual_TO: torch.Tensor | None = None
) -> torch.Tensor:
    """x · weightᵀ + bias, [T, O]. With a residual, that is added to it in place and the residual is returned."""
    out_TO = torch.nn.functional.linear(x_TC, weight_OC, bias_O)
    if residual_TO is None:
        return out_TO
    return residual_TO.add_(out_TO)
