"""Tokens that are left out of the draw, for all rows of a step at once: temperature, then top-k, top-p, min-p.

What one row keeps depends on no other; `gptoss_dist.kernels.truncation_reference` defines it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from gptoss_dist.engine.request import Sampling
from gptoss_dist.engine.staging import Staging
from gptoss_dist.kernels import truncation_reference
from gptoss_dist.kernels.truncation_reference import Cuts, farthest_of, rate_of

Truncate = Callable[[torch.Tensor, torch.Tensor, Cuts], torch.Tensor]
"""See `truncation_reference.truncate`."""


def cuts_of(samplings: Sequence[Sampling], vocabulary: int, staging: Staging) -> Cuts | None:
    """Those of the careful rows of a step, in their order; None if none is cut."""
    if not any(one.cuts for one in samplings):
        return None
    none = vocabulary + 1
    top_ks = [min(one.top_k or none, none) if one.cuts else none for one in samplings]
    return Cuts(*staging.send([
        (torch.float32, [rate_of(one.temperature) if one.cuts else 1.0 for one in samplings]),
        (torch.int64, top_ks),
        (torch.float64, [one.top_p if one.cuts else 1.0 for one in samplings]),
        (torch.float32, [farthest_of(one.min_p, one.temperature) if one.cuts else math.inf for one in samplings]),
    ]))  # fmt: skip


def truncate_on(device: torch.device) -> Truncate:
    """The kernels on a GPU, plain torch elsewhere; both keep the same tokens."""
    if device.type == "cuda":
        from gptoss_dist.kernels import truncation_triton

        return truncation_triton.truncate
    return truncation_reference.truncate
