"""What requests add to the logits of single tokens, for all rows of a step at once.

Shape legend: L careful rows of a step, B biases of all of them, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from gptoss_dist.engine.request import Sampling
from gptoss_dist.engine.staging import Staging


class Bias(NamedTuple):
    """Where in the logits what is added."""

    places_B: torch.Tensor
    """int64: into the logits [L, V] laid flat; each at most once."""
    values_B: torch.Tensor
    """float32."""


def bias_of(samplings: Sequence[Sampling], vocabulary: int, staging: Staging) -> Bias | None:
    """That of the careful rows of a step, in their order; None if there is none."""
    places: list[int] = []
    values: list[float] = []
    for number, sampling in enumerate(samplings):
        for token, value in sampling.logit_bias:
            places.append(number * vocabulary + token)
            values.append(value)
    return Bias(*staging.send([(torch.int64, places), (torch.float32, values)])) if places else None


def add_bias(logits_LV: torch.Tensor, bias: Bias) -> None:
    """Change the logits, which are contiguous."""
    logits_LV.view(-1).index_add_(0, bias.places_B, bias.values_B)
