"""What the all-reduces over buffers of a fixed size have in common: how wide they run, what they ask of a partial.

Shape legend: T tokens, H hidden.
"""

from __future__ import annotations

import torch

from gptoss_dist.errors import KernelError

MOST_PROGRAMS = 128
"""Of one call; each waits for its counterpart on the other ranks, so all must be resident at once on every GPU."""


def check_partial(partial_TH: torch.Tensor, max_tokens: int, hidden: int, dtype: torch.dtype) -> None:
    """Raise KernelError unless the buffers were made for such a partial."""
    tokens, columns = partial_TH.shape
    if tokens > max_tokens or columns != hidden or partial_TH.dtype != dtype:
        raise KernelError(
            f"a partial sum of {tokens} × {columns} {partial_TH.dtype} does not fit buffers made for at most "
            f"{max_tokens} × {hidden} {dtype}. Make the reducer larger, or use ProcessGroupReducer for this step."
        )
