"""Sums over ranks and what follows them (residual, RMSNorm), over torch's process groups or for one rank alone.

Every rank keeps its own copy of the residual, so the sums must be equal bit for bit on all ranks: a last bit of
difference can give a token another expert on one rank, whose partial sums then belong to different experts, and later
another token. The backends of torch (gloo, NCCL) form each sum once and hand it to all ranks.

Shape legend: T tokens, H hidden, K experts per token, P = T·K routes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.distributed as dist

from gptoss_dist.kernels import norm_reference

AddNorm = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor, float], torch.Tensor]
AddRoutesNorm = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int, torch.Tensor, float], torch.Tensor]
SumRoutes = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]


class Reducer(Protocol):
    """What a step needs of its ranks. What is to be added once, such as a bias, one rank has in its partial."""

    def reduce(self, partial_TH: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' partials, in their dtype; `partial_TH` may be overwritten."""

    def reduce_add_norm(
        self, partial_TH: torch.Tensor, residual_TH: torch.Tensor, weight_H: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        """`residual_TH += Σ partials` in place (float32, rounded once), then its RMSNorm, [T, H].

        The norm is `norm_reference.add_norm`'s. `partial_TH` may be overwritten.
        """

    def reduce_routes_add_norm(
        self,
        rows_PH: torch.Tensor,
        index_P: torch.Tensor,
        experts: int,
        residual_TH: torch.Tensor,
        weight_H: torch.Tensor,
        epsilon: float,
    ) -> torch.Tensor:
        """The same of partials that are sums over routes, as `norm_reference.sum_routes` forms and rounds them.

        Where there is one rank only, they need not be rounded.
        """


class LocalReducer:
    """One rank: there is nothing to sum."""

    def __init__(
        self,
        add_norm: AddNorm = norm_reference.add_norm,
        add_routes_norm: AddRoutesNorm = norm_reference.add_routes_norm,
    ) -> None:
        """Both of `norm_reference` or of `norm_triton`."""
        self._add_norm, self._add_routes_norm = add_norm, add_routes_norm

    def reduce(self, partial_TH: torch.Tensor) -> torch.Tensor:
        """The partial itself."""
        return partial_TH

    def reduce_add_norm(
        self, partial_TH: torch.Tensor, residual_TH: torch.Tensor, weight_H: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        """See `Reducer`."""
        return self._add_norm(residual_TH, partial_TH, weight_H, epsilon)

    def reduce_routes_add_norm(
        self,
        rows_PH: torch.Tensor,
        index_P: torch.Tensor,
        experts: int,
        residual_TH: torch.Tensor,
        weight_H: torch.Tensor,
        epsilon: float,
    ) -> torch.Tensor:
        """See `Reducer`."""
        return self._add_routes_norm(residual_TH, rows_PH, index_P, experts, weight_H, epsilon)


class ProcessGroupReducer:
    """Any number of ranks and any backend, through `torch.distributed.all_reduce`."""

    def __init__(
        self,
        group: dist.ProcessGroup,
        add_norm: AddNorm = norm_reference.add_norm,
        sum_routes: SumRoutes = norm_reference.sum_routes,
        *,
        wide: bool = True,
    ) -> None:
        """`wide`: sum in float32, twice the bytes of bfloat16; false sums in the partials' own dtype."""
        self._group = group
        self._add_norm, self._sum_routes = add_norm, sum_routes
        self._wide = wide

    def reduce(self, partial_TH: torch.Tensor) -> torch.Tensor:
        """See `Reducer`."""
        return self._sum(partial_TH).to(partial_TH.dtype)

    def reduce_add_norm(
        self, partial_TH: torch.Tensor, residual_TH: torch.Tensor, weight_H: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        """See `Reducer`."""
        return self._add_norm(residual_TH, self._sum(partial_TH), weight_H, epsilon)

    def reduce_routes_add_norm(
        self,
        rows_PH: torch.Tensor,
        index_P: torch.Tensor,
        experts: int,
        residual_TH: torch.Tensor,
        weight_H: torch.Tensor,
        epsilon: float,
    ) -> torch.Tensor:
        """See `Reducer`."""
        partial_TH = self._sum_routes(rows_PH, index_P, residual_TH, experts)
        return self.reduce_add_norm(partial_TH, residual_TH, weight_H, epsilon)

    def _sum(self, partial_TH: torch.Tensor) -> torch.Tensor:
        dtype = torch.promote_types(partial_TH.dtype, torch.float32) if self._wide else partial_TH.dtype
        total_TH = partial_TH.to(dtype).contiguous()
        dist.all_reduce(total_TH, group=self._group)
        return total_TH
