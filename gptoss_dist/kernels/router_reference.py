"""The router in plain torch: logits, the best experts of each token, and their weights.

Follows `GptOssTopKRouter` of transformers (models/gpt_oss/modeling_gpt_oss.py): logits are rounded to the activations'
dtype before the choice. In bfloat16 equal logits are common, and `torch.topk` leaves open which of them it takes; here
the lowest expert id wins, so that every rank and every kernel chooses alike.

Shape legend: T tokens, H hidden, E experts, K experts per token.
"""

from __future__ import annotations

import torch

from gptoss_dist.kernels import norm_reference


def route(
    normed_TH: torch.Tensor, weight_EH: torch.Tensor, bias_E: torch.Tensor, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(index_TK int32, weight_TK float32), best expert first; the weights are the softmax over the K chosen logits.

    The softmax is float32 of the rounded logits and is not rounded again (transformers rounds it to the activations'
    dtype).
    """
    return choose(torch.nn.functional.linear(normed_TH, weight_EH, bias_E), top_k)


def choose(logits_TE: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`route` from the logits on."""
    ordered_TE, order_TE = logits_TE.sort(dim=-1, descending=True, stable=True)
    weight_TK = ordered_TE[:, :top_k].to(torch.float32).softmax(dim=-1)
    return order_TE[:, :top_k].to(torch.int32), weight_TK


def norm_route(
    residual_TH: torch.Tensor,
    norm_H: torch.Tensor,
    epsilon: float,
    weight_EH: torch.Tensor,
    bias_E: torch.Tensor,
    top_k: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(normed_TH, index_TK, weight_TK): the RMSNorm of the residual, which stays as it is, and `route` of that."""
    normed_TH = norm_reference.add_norm(residual_TH, None, norm_H, epsilon)
    return normed_TH, *route(normed_TH, weight_EH, bias_E, top_k)
