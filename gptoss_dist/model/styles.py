"""Parallel styles that transformers has no name for, registered through its `ParallelInterface`.

- `gptoss_local`: run a module on its own shards. transformers 5.23 calls it `local_params`; 5.22 lacks it.
- `gptoss_expert_slices`: every rank holds all experts, each sliced along the intermediate dimension; outputs are
  summed. Upstream's `moe_tp_experts` sums too, but adds `down_proj`'s bias once a rank, and its parameter styles cut
  the interleaved or packed rows of `gate_up_proj` in the wrong place.

`tests/unit/model/test_styles.py` fails when upstream closes one of these gaps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import Shard, distribute_tensor
from transformers.distributed.parallel_utils import ParallelInterface
from transformers.distributed.tensor_parallel import TensorParallelLayer

from gptoss_dist.plan.rules import EXPERT_SLICES, LOCAL
from gptoss_dist.plan.shard import STYLES

_ONCE = "down_proj_bias"
"""Added after the slices' products are summed, so by one rank only."""


class LocalShards(TensorParallelLayer):  # type: ignore[misc]
    """Runs the module's forward with its sharded parameters as plain local tensors."""

    def should_use_local_tensors(self, module: Any) -> bool:  # noqa: ARG002
        """Always."""
        return True


class ExpertSlices(LocalShards):
    """Slices experts along the intermediate dimension and sums what the ranks computed."""

    def shard_param(self, module: Any, param: str, mesh: Any) -> None:
        """Mark one parameter as cut over the mesh; the loader then reads this rank's piece only."""
        whole = module._parameters[param]
        dim = STYLES[EXPERT_SLICES](param, whole.ndim)
        if dim is not None:
            piece = distribute_tensor(whole, mesh, [Shard(dim)], src_data_rank=None)
            module._parameters[param] = torch.nn.Parameter(piece, requires_grad=whole.requires_grad)

    @contextlib.contextmanager
    def context_around_forward(self, module: Any, mesh: Any) -> Iterator[None]:
        """Local tensors, and zeros for the bias on every rank but the first."""
        bias = module._parameters[_ONCE]
        with super().context_around_forward(module, mesh):
            try:
                if mesh.get_local_rank() != 0:
                    module._parameters[_ONCE] = torch.zeros_like(bias)
                yield
            finally:
                module._parameters[_ONCE] = bias

    def transform_output_post_forward(self, module: Any, output: torch.Tensor, mesh: Any) -> torch.Tensor:  # noqa: ARG002
        """Sum over the ranks of the replica, in place."""
        dist.all_reduce(output, group=mesh.get_group())
        return output


def register_styles() -> None:
    """Make both styles known to transformers; doing it again changes nothing."""
    ParallelInterface.register(LOCAL, LocalShards())
    ParallelInterface.register(EXPERT_SLICES, ExpertSlices())
