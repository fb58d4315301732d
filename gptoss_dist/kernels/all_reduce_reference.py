"""Sums over ranks and what follows them (residual, RMSNorm), over torch's process groups or for one rank alone.

Every rank keeps its own copy of the residual, so the sums must be equal bit for bit on all ranks: a last bit of
difference can give a token another expert on one rank, whose partial sums then belong to different experts, and later
another token. The backends of torch (gloo, NCCL) form each sum once and hand it to all ranks.

Shape legend: T tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from gptoss_dist.kernels import norm_reference
from gptoss_dist.kernels.reducer import Norm, Routes

AddNorm = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor, float], torch.Tensor]
AddRoutesNorm = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int, torch.Tensor, float], torch.Tensor]
SumRoutes = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]


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

    def reduce_add_norm(self, partial: torch.Tensor | Routes, norm: Norm) -> torch.Tensor:
        """See `Reducer`."""
        if isinstance(partial, Routes):
            return self._add_routes_norm(norm.residual_TH, *partial, norm.weight_H, norm.epsilon)
        return self._add_norm(norm.residual_TH, partial, norm.weight_H, norm.epsilon)


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

    def reduce_add_norm(self, partial: torch.Tensor | Routes, norm: Norm) -> torch.Tensor:
        """See `Reducer`."""
        if isinstance(partial, Routes):
            partial = self._sum_routes(partial.rows_PH, partial.index_P, norm.residual_TH, partial.experts)
        return self._add_norm(norm.residual_TH, self._sum(partial), norm.weight_H, norm.epsilon)

    def _sum(self, partial_TH: torch.Tensor) -> torch.Tensor:
        dtype = torch.promote_types(partial_TH.dtype, torch.float32) if self._wide else partial_TH.dtype
        total_TH = partial_TH.to(dtype).contiguous()
        dist.all_reduce(total_TH, group=self._group)
        return total_TH
