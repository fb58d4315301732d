"""Packed experts in plain torch: the obvious way, on any device, and the one every faster kernel is compared with.

Follows `GptOssExperts.forward` of transformers (models/gpt_oss/modeling_gpt_oss.py) on weights that are unpacked when
they are used. Shape legend: T tokens, K experts per token, P = T·K routes, E experts here, H hidden, I intermediate.
"""

from __future__ import annotations

from typing import Any

import torch

from gptoss_dist.kernels.mxfp4 import dequantize
from gptoss_dist.kernels.mxfp4_layout import restore
from gptoss_dist.kernels.packed import PackedExperts

_FEW_ROUTES = 16
"""Up to here each route unpacks its own expert: no count is read back from the device."""


def experts_forward(
    hidden_TH: torch.Tensor, index_TK: torch.Tensor, weight_TK: torch.Tensor, packed: PackedExperts
) -> torch.Tensor:
    """Σ over a token's routes of weight × expert(hidden), `[T, H]` in the dtype of `hidden_TH`.

    Routes whose expert id lies outside [0, E) belong to other ranks and add nothing. Weights that another kernel has
    laid out anew are copied back into the checkpoint's order first.
    """
    packed = restore(packed)
    if index_TK.numel() <= _FEW_ROUTES:
        return _by_route(hidden_TH, index_TK, weight_TK, packed)
    return _by_expert(hidden_TH, index_TK, weight_TK, packed)


def swiglu(gate_up: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
    """Clamped SwiGLU of `[…, 2I]` with gate and up interleaved: (up + 1) · gate · sigmoid(alpha · gate), `[…, I]`."""
    gate = gate_up[..., 0::2].clamp(max=limit)
    up = gate_up[..., 1::2].clamp(min=-limit, max=limit)
    return (up + 1) * gate * torch.sigmoid(gate * alpha)


def _by_route(
    hidden_TH: torch.Tensor, index_TK: torch.Tensor, weight_TK: torch.Tensor, packed: PackedExperts
) -> torch.Tensor:
    dtype, (tokens, experts_per_token) = hidden_TH.dtype, index_TK.shape
    index_P = index_TK.reshape(-1)
    here_P = (index_P >= 0) & (index_P < packed.expert_count)
    index_P = index_P.clamp(0, packed.expert_count - 1)
    gate_up_PIH = dequantize(packed.gate_up_blocks[index_P], packed.gate_up_scales[index_P], dtype).flatten(1, 2)
    hidden_PH = hidden_TH.repeat_interleave(experts_per_token, dim=0)
    gate_up_PI = torch.bmm(gate_up_PIH, hidden_PH.unsqueeze(-1)).squeeze(-1) + packed.gate_up_bias[index_P].flatten(1)
    inner_PI = swiglu(gate_up_PI, packed.alpha, packed.limit)
    down_PHI = dequantize(packed.down_blocks[index_P], packed.down_scales[index_P], dtype)
    out_PH = torch.bmm(down_PHI, inner_PI.unsqueeze(-1)).squeeze(-1) + packed.down_bias[index_P]
    weight_P = (weight_TK.reshape(-1) * here_P).unsqueeze(-1)
    return (out_PH * weight_P).view(tokens, experts_per_token, hidden_TH.shape[1]).sum(dim=1).to(dtype)


def _by_expert(
    hidden_TH: torch.Tensor, index_TK: torch.Tensor, weight_TK: torch.Tensor, packed: PackedExperts
) -> torch.Tensor:
    out_TH = torch.zeros_like(hidden_TH)
    index_P = index_TK.reshape(-1)
    here_P = (index_P >= 0) & (index_P < packed.expert_count)
    for expert in torch.unique(index_P[here_P]).tolist():
        token_N, slot_N = torch.where(index_TK == expert)
        out_NH = _one_expert(hidden_TH[token_N], expert, packed) * weight_TK[token_N, slot_N, None]
        out_TH.index_add_(0, token_N, out_NH.to(out_TH.dtype))
    return out_TH


def _one_expert(hidden_NH: torch.Tensor, expert: int, packed: PackedExperts) -> torch.Tensor:
    dtype = hidden_NH.dtype
    gate_up_IH = dequantize(packed.gate_up_blocks[expert], packed.gate_up_scales[expert], dtype).flatten(0, 1)
    gate_up_NI = hidden_NH @ gate_up_IH.T + packed.gate_up_bias[expert].flatten()
    inner_NI = swiglu(gate_up_NI, packed.alpha, packed.limit)
    down_HI = dequantize(packed.down_blocks[expert], packed.down_scales[expert], dtype)
    return inner_NI @ down_HI.T + packed.down_bias[expert]


def unavailable(_: torch.device) -> str | None:
    """Plain torch runs on every device."""
    return None


def install(module: Any) -> None:
    """Make it the kernel of a `PackedGptOssExperts`."""
    module.kernel, module.rows_kernel = experts_forward, None
