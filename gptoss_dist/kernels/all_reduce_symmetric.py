"""The reducers over torch's symmetric memory: every GPU of the group maps the buffers of all others.

Shape legend: T tokens, H hidden, P programs or blocks.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric

from gptoss_dist.errors import KernelError, RankError
from gptoss_dist.kernels import all_reduce_push, all_reduce_triton
from gptoss_dist.kernels.all_reduce_arguments import MOST_PROGRAMS, check_partial
from gptoss_dist.kernels.all_reduce_push import PushReducer
from gptoss_dist.kernels.all_reduce_triton import FusedReducer
from gptoss_dist.kernels.device_facts import processor_count
from gptoss_dist.kernels.norm_triton import add_norm, sum_routes
from gptoss_dist.kernels.reducer import Norm, Reducer, Routes
from gptoss_dist.runtime.agree import Gatherer, together

Method = Literal["fused", "push", "one_shot"]


def symmetric_reducer(
    world: Gatherer,
    group: dist.ProcessGroup,
    max_tokens: int,
    hidden: int,
    dtype: torch.dtype,
    device: torch.device,
    method: Method = "fused",
) -> Reducer:
    """That of ranks whose GPUs reach each other's memory; calls must be alike on all ranks.

    `method`: "fused" is `all_reduce_triton`, one launch with all that follows the sum; "push" is `all_reduce_push`, the
    same in CUDA C++ for bfloat16, over the link once where that goes twice; "one_shot" is torch's own.

    Collective over `world`, all ranks of the run, of which `group` has some: what one cannot do none does. Raises
    KernelError, on all of them, where one cannot map the memory of another.
    """
    if method not in get_args(Method):
        raise KernelError(f"all-reduce method {method!r} is not known. Known: {', '.join(get_args(Method))}.")
    try:
        own = together(world, lambda: _allocate(group, max_tokens, hidden, dtype, device, method))
        handles = [together(world, functools.partial(symmetric.rendezvous, tensor, group)) for tensor in own]
        programs = _programs(world, max_tokens, device)
        together(world, lambda: _settle(handles[-1], device))
    except RankError as error:
        raise KernelError(
            f"the ranks cannot map each other's memory ({error}): they must be GPUs of one host that reach each "
            "other (`nvidia-smi topo -p2p r`). ProcessGroupReducer needs none."
        ) from error
    if method == "one_shot":
        return OneShotReducer(own[0][0], group, (*own, *handles))
    addresses = [_addresses(tensor, handle) for tensor, handle in zip(own, handles, strict=True)]
    calls_P = torch.zeros(programs, dtype=torch.int32, device=device)
    rank, owned = group.rank(), (*own, *handles)
    if method == "push":
        return PushReducer(addresses[0], calls_P, rank, max_tokens, hidden, owned)
    return FusedReducer(addresses[0], addresses[1], calls_P, rank, max_tokens, hidden, dtype, owned)


class OneShotReducer:
    """torch's `symm_mem::one_shot_all_reduce_copy`, then `norm_triton.add_norm`: what the others are measured against.

    float32 or bfloat16; it adds in rank order, and rounds each sum to the dtype.
    """

    def __init__(self, buffer_TH: torch.Tensor, group: dist.ProcessGroup, owned: tuple[object, ...]) -> None:
        """`buffer_TH`: this rank's own symmetric memory, for as many tokens as it has rows. `owned` keeps it mapped."""
        self._buffer_TH, self._group, self._owned = buffer_TH, group, owned

    def reduce(self, partial_TH: torch.Tensor) -> torch.Tensor:
        """See `Reducer`."""
        max_tokens, hidden = self._buffer_TH.shape
        check_partial(partial_TH, max_tokens, hidden, self._buffer_TH.dtype)
        total_TH: torch.Tensor = torch.ops.symm_mem.one_shot_all_reduce_copy(
            self._buffer_TH[: len(partial_TH)], partial_TH.contiguous(), "sum", self._group.group_name
        )
        return total_TH

    def reduce_add_norm(self, partial: torch.Tensor | Routes, norm: Norm) -> torch.Tensor:
        """See `Reducer`."""
        if isinstance(partial, Routes):
            partial = sum_routes(partial.rows_PH, partial.index_P, norm.residual_TH, partial.experts)
        return add_norm(norm.residual_TH, self.reduce(partial), norm.weight_H, norm.epsilon)


def _allocate(
    group: dist.ProcessGroup, max_tokens: int, hidden: int, dtype: torch.dtype, device: torch.device, method: Method
) -> list[torch.Tensor]:
    """This rank's own part, all zeros: the slots of "push", else buffers and flags. Not collective."""
    if device.type != "cuda":
        raise KernelError(f"symmetric memory needs GPUs, and this rank runs on {device}")
    parts: list[tuple[tuple[int, ...], torch.dtype]]
    if method == "push":
        parts = [((all_reduce_push.SLOTS, group.size(), max_tokens, hidden), torch.int32)]
    else:
        buffers = (all_reduce_triton.BUFFERS, max_tokens, hidden)
        parts = [(buffers, dtype), ((min(max_tokens, MOST_PROGRAMS), group.size()), torch.int32)]
    own = [symmetric.empty(shape, dtype=part_dtype, device=device) for shape, part_dtype in parts]
    for tensor in own:
        tensor.zero_()
    return own


def _programs(world: Gatherer, max_tokens: int, device: torch.device) -> int:
    """How many work on a call, on all ranks alike; not more than there are multiprocessors: none waits for its turn."""
    fewest = min(world.all_gather_object(processor_count(device)))
    return min(max_tokens, MOST_PROGRAMS, fewest)


def _settle(handle: Any, device: torch.device) -> None:
    """Nobody writes to the memory of others before all have theirs at zero."""
    handle.barrier()  # on the stream
    torch.cuda.synchronize(device)


def _addresses(tensor: torch.Tensor, handle: Any) -> torch.Tensor:
    """int64: where this process finds every rank's copy of a symmetric tensor."""
    offset = tensor.data_ptr() - handle.buffer_ptrs[handle.rank]
    return torch.tensor([address + offset for address in handle.buffer_ptrs], dtype=torch.int64, device=tensor.device)
