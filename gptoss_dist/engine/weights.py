"""The weights that a rank's step needs: plain local tensors, and functions for the experts. `take_weights` makes them.

Shape legend: H hidden, Q query and K key-value heads here, C columns here, E experts, V vocabulary, F frequencies (half
the head size).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Experts = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(hidden [T, H], expert ids [T, top_k] as this rank counts them, weights [T, top_k]) → this rank's part of [T, H]."""
ExpertRows = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Of the same: what each of a token's routes adds to its sum, [T · top_k, H] float32 and contiguous."""


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer."""

    sliding: bool
    input_norm_H: torch.Tensor
    qkv_CH: torch.Tensor
    """Query, key and value rows, one after the other."""
    qkv_bias_C: torch.Tensor | None
    sinks_Q: torch.Tensor
    output_HC: torch.Tensor
    output_bias_H: torch.Tensor | None
    """Of the ranks whose results are summed the first has it."""
    post_norm_H: torch.Tensor
    router_EH: torch.Tensor
    router_bias_E: torch.Tensor
    experts: Experts
    expert_rows: ExpertRows | None = None
    """None: the experts' kernel gives sums only."""


@dataclass(frozen=True)
class Split:
    """Which parts lie in pieces over the ranks of the replica, so that their results have to be put together."""

    attention: bool = False
    experts: bool = False
    embedding: bool = False
    head: bool = False


@dataclass(frozen=True)
class Weights:
    """All layers and what stands around them."""

    layers: tuple[LayerWeights, ...]
    split: Split
    embedding_VH: torch.Tensor
    embedding_first: int
    """The token of the first row here."""
    head_VH: torch.Tensor
    head_first: int
    final_norm_H: torch.Tensor
    inverse_frequency_F: torch.Tensor
    """float32."""
    attention_scaling: float
    """Factor of cosine and sine (YaRN, arXiv:2309.00071)."""
    epsilon: float
    head_size: int
    query_heads: int
    kv_heads: int
    window: int
    """Positions that a query of a sliding layer sees, itself included."""
    top_k: int
    first_expert: int
    """The expert that is number 0 here."""
    expert_count: int
    """Experts here."""
    vocabulary: int
    context: int
    """Longest sequence that the model knows."""
    packed: bool
    """Whether the experts are MXFP4."""

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.head_VH.device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of activations and cache."""
        return self.head_VH.dtype

    @property
    def hidden(self) -> int:
        """H."""
        return self.head_VH.shape[1]
