"""The packed experts of one layer on one rank: what every expert kernel gets.

Shape legend: E experts on this rank, H hidden, I intermediate columns on this rank, G = I / 32 groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PackedExperts:
    """MXFP4 weights, the rows of gate_up by groups of 64 (gate and up in turn)."""

    gate_up_blocks: torch.Tensor
    """[E, G, 64, H/32, 16] uint8."""
    gate_up_scales: torch.Tensor
    """[E, G, 64, H/32] uint8."""
    gate_up_bias: torch.Tensor
    """[E, G, 64]."""
    down_blocks: torch.Tensor
    """[E, H, G, 16] uint8."""
    down_scales: torch.Tensor
    """[E, H, G] uint8."""
    down_bias: torch.Tensor
    """[E, H]."""
    alpha: float
    """Sigmoid gain of the clamped SwiGLU, 1.702 in gpt-oss."""
    limit: float
    """Its clamp, 7."""
    interleaved: bool = False
    """Whether blocks and scales stand in the order of `mxfp4_layout` instead of the checkpoint's."""
    model_experts: int | None = None
    """Number of experts of the model; None: those here."""
    counters: torch.Tensor | None = None
    """What blocks of a kernel wait for each other with, of kernels that need it: see `experts_cuda.counters_on`."""

    @property
    def expert_count(self) -> int:
        """Number of experts this rank holds."""
        return self.down_bias.shape[0]

    def routes_per_expert(self, routes: int) -> float:
        """How many of so many routes, those of other ranks among them, an expert gets in the mean."""
        return routes / (self.model_experts or self.expert_count)
