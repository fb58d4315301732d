"""How the parts of a replica's ranks are put together: the best way that these ranks have, chosen once.

Shape legend: T tokens, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from gptoss_dist.errors import KernelError
from gptoss_dist.kernels.all_reduce_reference import LocalReducer, ProcessGroupReducer, Reducer
from gptoss_dist.kernels.step_kernels import StepKernels
from gptoss_dist.runtime.agree import Gatherer


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
        return self._for(partial_TH).reduce(partial_TH)

    def reduce_add_norm(
        self,
        partial_TH: torch.Tensor,
        bias_H: torch.Tensor | None,
        residual_TH: torch.Tensor,
        weight_H: torch.Tensor,
        epsilon: float,
    ) -> torch.Tensor:
        """See `Reducer`."""
        return self._for(partial_TH).reduce_add_norm(partial_TH, bias_H, residual_TH, weight_H, epsilon)

    def _for(self, partial_TH: torch.Tensor) -> Reducer:
        return self._few if partial_TH.shape[0] <= self._most else self._many


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
        return Sums(LocalReducer(kernels.add_norm), "")
    # On GPUs in the activations' own format, as the model's own forward sums: half the bytes of a long prompt.
    everywhere = ProcessGroupReducer(group, kernels.add_norm, wide=device.type != "cuda")
    if device.type != "cuda" or not kernels.capturable:
        return Sums(everywhere, f"sums over ranks through {dist.get_backend(group)}")
    symmetric, problem = _symmetric(world, group, most, hidden, dtype, device)
    if symmetric is None:
        return Sums(everywhere, f"sums over ranks through {dist.get_backend(group)} ({problem})")
    return Sums(BySize(symmetric, most, everywhere), f"sums of up to {most} tokens over symmetric memory")


def _symmetric(
    world: Gatherer, group: dist.ProcessGroup, most: int, hidden: int, dtype: torch.dtype, device: torch.device
) -> tuple[Reducer | None, str]:
    """The reducer, or None and why this rank or another one has none."""
    from gptoss_dist.kernels.all_reduce_symmetric import SymmetricReducer

    try:
        return SymmetricReducer(world, group, most, hidden, dtype, device), ""
    except KernelError as error:
        return None, str(error)
