"""Sums over ranks and what follows them (bias, residual, RMSNorm), over torch's process groups or for one rank alone.

Every rank keeps its own copy of the residual, so the sums must be equal bit for bit on all ranks: a last bit of
difference can give a token another expert on one rank, whose partial sums then belong to different experts, and later
another token. The backends of torch (gloo, NCCL) form each sum once and hand it to all ranks.

Shape legend: T tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.distributed as dist

from gptoss_dist.kernels import norm_reference

AddNorm = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor, float], torch.Tensor]


class Reducer(Protocol):
    """What a decode step needs of its ranks."""

    def reduce(self, partial_TH: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' partials, in their dtype; `partial_TH` may be overwritten."""

    def reduce_add_norm(
        self,
        partial_TH: torch.Tensor,
        bias_H: torch.Tensor | None,
        residual_TH: torch.Tensor,
        weight_H: torch.Tensor,
        epsilon: float,
    ) -> torch.Tensor:
        """`residual_TH += Σ partials + bias` in place (float32, rounded once), then its RMSNorm, [T, H].

        The bias is added once, not once a rank. The norm is `norm_reference.add_norm`'s. `partial_TH` may be
        overwritten.
        """


class LocalReducer:
    """One rank: there is nothing to sum."""

    def __init__(self, add_norm: AddNorm = norm_reference.add_norm) -> None:
        """`add_norm`: of `norm_reference` or `norm_triton`."""
        self._add_norm = add_norm

    def reduce(self, partial_TH: torch.Tensor) -> torch.Tensor:
        """The partial itself."""
        return partial_TH

    def reduce_add_norm(
        self,
        partial_TH: torch.Tensor,
        bias_H: torch.Tensor | None,
        residual_TH: torch.Tensor,
        weight_H: torch.Tensor,
        epsilon: float,
    ) -> torch.Tensor:
        """See `Reducer`."""
        return self._add_norm(residual_TH, with_bias(partial_TH, bias_H), weight_H, epsilon)


class ProcessGroupReducer:
    """Any number of ranks and any backend, through `torch.distributed.all_reduce`."""

    def __init__(
        self, group: dist.ProcessGroup, add_norm: AddNorm = norm_reference.add_norm, *, wide: bool = True
    ) -> None:
        """`wide`: sum in float32, twice the bytes of bfloat16; false sums in the partials' own dtype.

        The first rank adds the bias to its partial, which saves three passes over the sum.
        """
        self._group = group
        self._leads = group.rank() == 0
        self._add_norm = add_norm
        self._wide = wide

    def reduce(self, partial_TH: torch.Tensor) -> torch.Tensor:
        """See `Reducer`."""
        return self._sum(partial_TH).to(partial_TH.dtype)

    def reduce_add_norm(
        self,
        partial_TH: torch.Tensor,
        bias_H: torch.Tensor | None,
        residual_TH: torch.Tensor,
        weight_H: torch.Tensor,
        epsilon: float,
    ) -> torch.Tensor:
        """See `Reducer`."""
        return self._add_norm(residual_TH, self._sum(partial_TH, bias_H), weight_H, epsilon)

    def _sum(self, partial_TH: torch.Tensor, bias_H: torch.Tensor | None = None) -> torch.Tensor:
        dtype = torch.promote_types(partial_TH.dtype, torch.float32) if self._wide else partial_TH.dtype
        total_TH = partial_TH.to(dtype).contiguous()
        if bias_H is not None and self._leads:
            total_TH += bias_H
        dist.all_reduce(total_TH, group=self._group)
        return total_TH


def with_bias(total_TH: torch.Tensor, bias_H: torch.Tensor | None) -> torch.Tensor:
    """The sum plus the bias, float32 or wider; the sum itself without a bias."""
    if bias_H is None:
        return total_TH
    wide = torch.promote_types(total_TH.dtype, torch.float32)
    return total_TH.to(wide) + bias_H.to(wide)
