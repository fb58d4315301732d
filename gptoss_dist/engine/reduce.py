"""How the parts of a replica's ranks are put together: the best way that these ranks have, chosen once.

Shape legend: T tokens, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from gptoss_dist.errors import KernelError
from gptoss_dist.kernels.all_reduce_reference import LocalReducer, ProcessGroupReducer
from gptoss_dist.kernels.reducer import Norm, Reducer, Routes
from gptoss_dist.kernels.step_kernels import StepKernels
from gptoss_dist.runtime.agree import Gatherer

if TYPE_CHECKING:
    from gptoss_dist.kernels.all_reduce_symmetric import Method


_MOST_SENT = 1024
"""Rows that a rank sends to all others together up to which it pushes. On the device NCCL is as fast from some 800 on,
but not on the host, for which a prompt of that size waits (engine/NOTES.md)."""


def pushed_rows(most: int, ranks: int) -> int:
    """Rows that each of `ranks` ranks, more than one, pushes at most where steps of up to `most` rows are captured."""
    return max(most, _MOST_SENT // (ranks - 1))


@dataclass(frozen=True)
class Sums:
    """What sums over the ranks, and what to say of it."""

    reducer: Reducer
    reason: str


class BySize:
    """One reducer for up to `most` tokens, another beyond: the buffers of the first have a size."""

    def __init__(self, few: Reducer, most: int, many: Reducer) -> None:
        """Both reduce over the same ranks."""
        self._few, self._most, self._many = few, most, many

    def reduce(self, partial_TH: torch.Tensor) -> torch.Tensor:
        """See `Reducer`."""
        return self._for(len(partial_TH)).reduce(partial_TH)

    def reduce_add_norm(self, partial: torch.Tensor | Routes, norm: Norm) -> torch.Tensor:
        """See `Reducer`."""
        return self._for(len(norm.residual_TH)).reduce_add_norm(partial, norm)

    def _for(self, tokens: int) -> Reducer:
        return self._few if tokens <= self._most else self._many


def choose_reducer(
    kernels: StepKernels,
    world: Gatherer,
    group: dist.ProcessGroup | None,
    most: int,
    hidden: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Sums:
    """The reducer over `group` (None: one rank). Collective over all ranks of the run, `world`.

    Symmetric memory serves up to `most` tokens where all ranks can map each other's GPU, and the process group the
    rest. Whether they can is agreed on: what one rank cannot do none does, in no replica.
    """
    if group is None:
        return Sums(LocalReducer(kernels.add_norm, kernels.add_routes_norm), "")
    # On GPUs in the activations' own format, as the model's own forward sums: half the bytes of a long prompt.
    everywhere = ProcessGroupReducer(group, kernels.add_norm, kernels.sum_routes, wide=device.type != "cuda")
    if device.type != "cuda" or not kernels.capturable:
        return Sums(everywhere, f"sums over ranks through {dist.get_backend(group)}")
    method: Method = "fused"
    if kernels.compiled and dtype == torch.bfloat16:
        method, most = "push", pushed_rows(most, group.size())
    symmetric, problem = _symmetric(world, group, most, hidden, dtype, device, method)
    if symmetric is None:
        return Sums(everywhere, f"sums over ranks through {dist.get_backend(group)} ({problem})")
    return Sums(BySize(symmetric, most, everywhere), f"sums of up to {most} tokens over symmetric memory")


def _symmetric(
    world: Gatherer,
    group: dist.ProcessGroup,
    most: int,
    hidden: int,
    dtype: torch.dtype,
    device: torch.device,
    method: Method,
) -> tuple[Reducer | None, str]:
    """The reducer, or None and why this rank or another one has none."""
    from gptoss_dist.kernels.all_reduce_symmetric import symmetric_reducer

    try:
        return symmetric_reducer(world, group, most, hidden, dtype, device, method), ""
    except KernelError as error:
        return None, str(error)
