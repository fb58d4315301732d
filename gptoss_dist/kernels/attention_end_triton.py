"""What stands between a decode step's attention and its experts where one rank holds all heads, in two launches.

The output projection adds its rows, bias included, to the residual; the router makes the norm as it reads. Sums over
ranks have no place in this: see `all_reduce_reference`.

Shape legend: T tokens, C columns of the heads, H hidden, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from gptoss_dist.kernels import projection_reference
from gptoss_dist.kernels.norm_triton import add_norm
from gptoss_dist.kernels.projection_tiles import FEW_TOKENS
from gptoss_dist.kernels.projection_triton import project
from gptoss_dist.kernels.router_triton import norm_route, route


def end_attention(
    out_TC: torch.Tensor,
    weight_HC: torch.Tensor,
    bias_H: torch.Tensor | None,
    residual_TH: torch.Tensor,
    norm_H: torch.Tensor,
    epsilon: float,
    router_EH: torch.Tensor,
    router_bias_E: torch.Tensor,
    top_k: int,
    project_few: Callable[..., torch.Tensor] = project,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`residual_TH` += out · weightᵀ + bias in place, then `router_reference.norm_route` of it."""
    if out_TC.shape[0] <= FEW_TOKENS:
        project_few(out_TC, weight_HC, bias_H, residual_TH)
        return norm_route(residual_TH, norm_H, epsilon, router_EH, router_bias_E, top_k)
    normed_TH = add_norm(residual_TH, projection_reference.project(out_TC, weight_HC, bias_H), norm_H, epsilon)
    return normed_TH, *route(normed_TH, router_EH, router_bias_E, top_k)
