"""Many small tensors copied at once, on the device."""

from __future__ import annotations

from collections.abc import Iterable

import torch

Copy = tuple[torch.Tensor, torch.Tensor]
"""Source and target. A source may be one row, for each row of the target."""


def copy_all(copies: Iterable[Copy]) -> None:
    """Copy every source to its target, both of one type. Asynchronous. Dense ones of one type go in one launch."""
    by_kind: dict[tuple[torch.dtype, bool], tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for source, target in copies:
        if target.numel():
            sources, targets = by_kind.setdefault((source.dtype, source.shape == target.shape), ([], []))
            sources.append(source.expand_as(target))
            targets.append(target)
    for sources, targets in by_kind.values():
        torch._foreach_copy_(targets, sources)
