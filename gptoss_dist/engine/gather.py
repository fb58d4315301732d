"""All-gather into one tensor, by the name that this torch has for it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

# torch 2.13 calls it all_gather_single, and warns of the name that versions before know.
_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def all_gather_into(whole: torch.Tensor, part: torch.Tensor, group: dist.ProcessGroup | None) -> None:
    """`whole` becomes the `part` of every rank of the group, one after the other along the first dimension."""
    _gather(whole, part, group=group)
