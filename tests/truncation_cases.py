"""Cuts of many kinds, for the tests of the kernels that apply them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from gptoss_dist.kernels.truncation_reference import Cuts, farthest_of, rate_of


class Asked(NamedTuple):
    """What one row asks for; by default nothing is cut."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0


def cuts_for(asked: list[Asked], vocabulary: int, device: str = "cpu") -> Cuts:
    """As the kernels take them."""
    return Cuts(
        torch.tensor([rate_of(one.temperature) for one in asked], device=device),
        torch.tensor([one.top_k or vocabulary + 1 for one in asked], device=device),
        torch.tensor([one.top_p for one in asked], dtype=torch.float64, device=device),
        torch.tensor([farthest_of(one.min_p, one.temperature) for one in asked], device=device),
    )


def kinds(vocabulary: int) -> list[Asked]:
    """One of each, small and large."""
    few, most = min(3, vocabulary), max(vocabulary * 4 // 5, 1)
    return [
        Asked(),
        Asked(top_p=0.9),
        Asked(top_k=few),
        Asked(min_p=0.1),
        Asked(0.3, top_p=0.5),
        Asked(4.0, top_p=0.999),
        Asked(top_k=most),
        Asked(top_k=vocabulary),
        Asked(0.7, top_k=most, top_p=0.8),
        Asked(1.5, top_k=few, top_p=0.6, min_p=0.02),
        Asked(top_p=1e-9),
        Asked(top_p=1 - 1e-12, min_p=0.001),
        Asked(1e-30, top_k=2, top_p=0.5),
        Asked(1e30, top_p=0.5, min_p=0.5),
    ]
