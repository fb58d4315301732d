"""Experts that are not packed, in plain torch, on any device: for dequantised checkpoints, which no fast path serves.

Follows `GptOssExperts.forward` of transformers (models/gpt_oss/modeling_gpt_oss.py), on this rank's own experts or
slices of them. Shape legend: T tokens, K experts per token, E experts here, H hidden, I intermediate columns here, N
tokens of one expert.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gptoss_dist.kernels.experts_reference import swiglu


@dataclass(frozen=True)
class DenseExperts:
    """The experts of one layer on one rank."""

    gate_up: torch.Tensor
    """[E, H, 2I], gate and up in turn."""
    gate_up_bias: torch.Tensor
    """[E, 2I]."""
    down: torch.Tensor
    """[E, I, H]."""
    down_bias: torch.Tensor
    """[E, H]."""
    alpha: float
    """Sigmoid gain of the clamped SwiGLU."""
    limit: float
    """Its clamp."""


def dense_forward(
    hidden_TH: torch.Tensor, index_TK: torch.Tensor, weight_TK: torch.Tensor, experts: DenseExperts
) -> torch.Tensor:
    """Σ over a token's routes of weight × expert(hidden), `[T, H]` in the dtype of `hidden_TH`.

    Routes whose expert id lies outside [0, E) belong to other ranks and add nothing. Reads the chosen experts back from
    the device, so it cannot be part of a CUDA graph.
    """
    out_TH = torch.zeros_like(hidden_TH)
    here_TK = (index_TK >= 0) & (index_TK < experts.down_bias.shape[0])
    for expert in torch.unique(index_TK[here_TK]).tolist():
        token_N, place_N = torch.where(index_TK == expert)
        gate_up_NI = hidden_TH[token_N] @ experts.gate_up[expert] + experts.gate_up_bias[expert]
        inner_NI = swiglu(gate_up_NI, experts.alpha, experts.limit)
        out_NH = inner_NI @ experts.down[expert] + experts.down_bias[expert]
        weighted_NH = out_NH * weight_TK[token_N, place_N, None]
        out_TH.index_add_(0, token_N, weighted_NH.to(out_TH.dtype))
    return out_TH
