"""gpt-oss's experts with packed weights: takes the place of `GptOssExperts` when an MXFP4 checkpoint is loaded.

Parameter names are the checkpoint's own, so that transformers' loader needs no conversion; the rows of `gate_up_proj`
are held by groups of 64, so that a cut along the intermediate dimension falls between groups for both projections
(`gptoss_dist.plan.shard`). Shape legend: E experts, H hidden, G groups of 32 intermediate columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gptoss_dist.kernels.experts_reference import experts_forward
from gptoss_dist.kernels.packed import PackedExperts
from gptoss_dist.shapes import GROUP

Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, PackedExperts], torch.Tensor]


class PackedGptOssExperts(nn.Module):
    """Experts kept as MXFP4 blocks and scales; `kernel` multiplies them, the plain-torch reference at first."""

    def __init__(self, config: Any) -> None:
        """`config`: a GptOssConfig. Parameters are uninitialised, and uint8 ones need no gradient."""
        super().__init__()
        experts, hidden = config.num_local_experts, config.hidden_size
        groups = config.intermediate_size // GROUP
        self.num_experts = experts  # transformers' expert parallelism lowers it to the experts of this rank
        self.model_experts = experts
        self.hidden_size = hidden
        self.intermediate_size = config.intermediate_size
        self.alpha = 1.702
        self.limit = float(config.swiglu_limit)
        self.kernel: Forward = experts_forward
        self.rows_kernel: Forward | None = None  # the same before a token's routes are summed, of kernels that have it
        self.counters: torch.Tensor | None = None  # of a kernel whose blocks wait for each other
        self.interleaved = False  # a kernel that lays blocks and scales out anew says so here
        self.gate_up_proj_blocks = _bytes(experts, groups, 2 * GROUP, hidden // GROUP, GROUP // 2)
        self.gate_up_proj_scales = _bytes(experts, groups, 2 * GROUP, hidden // GROUP)
        self.gate_up_proj_bias = nn.Parameter(torch.empty(experts, groups, 2 * GROUP))
        self.down_proj_blocks = _bytes(experts, hidden, groups, GROUP // 2)
        self.down_proj_scales = _bytes(experts, hidden, groups)
        self.down_proj_bias = nn.Parameter(torch.empty(experts, hidden))

    def packed(self) -> PackedExperts:
        """What this rank holds; inside a forward of a sharded model the parameters are the rank's own pieces."""
        return PackedExperts(
            gate_up_blocks=self.gate_up_proj_blocks,
            gate_up_scales=self.gate_up_proj_scales,
            gate_up_bias=self.gate_up_proj_bias,
            down_blocks=self.down_proj_blocks,
            down_scales=self.down_proj_scales,
            down_bias=self.down_proj_bias,
            alpha=self.alpha,
            limit=self.limit,
            interleaved=self.interleaved,
            model_experts=self.model_experts,
            counters=self.counters,
        )

    def forward(self, hidden_TH: torch.Tensor, index_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        """Weighted sum of the routed experts, `[T, H]`; ids outside [0, num_experts) are other ranks' routes."""
        return self.kernel(hidden_TH, index_TK, weight_TK, self.packed())


def _bytes(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=torch.uint8), requires_grad=False)
