"""The reducer over torch's symmetric memory: every GPU of the group maps the buffers of all others.

Shape legend: T tokens, H hidden, P routes.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric

from gptoss_dist.errors import KernelError, RankError
from gptoss_dist.kernels import all_reduce_push, all_reduce_triton, norm_triton
from gptoss_dist.kernels.all_reduce_arguments import MOST_PROGRAMS, check_partial
from gptoss_dist.kernels.all_reduce_push import PushExchange
from gptoss_dist.kernels.all_reduce_triton import Exchange
from gptoss_dist.kernels.device_facts import processor_count
from gptoss_dist.runtime.agree import Gatherer, together

Method = Literal["fused", "push", "one_shot"]


class SymmetricReducer:
    """Ranks whose GPUs reach each other's memory; calls must be alike on all ranks.

    `method`: "fused" is `all_reduce_triton`, one launch with all that follows the sum; "push" is `all_reduce_push`, the
    same in CUDA C++ for bfloat16, over the link once where that goes twice; "one_shot" is torch's
    `symm_mem::one_shot_all_reduce_copy` (float32 or bfloat16; it adds in rank order, rounding each sum to the dtype),
    then `norm_triton.add_norm`.
    """

    def __init__(
        self,
        world: Gatherer,
        group: dist.ProcessGroup,
        max_tokens: int,
        hidden: int,
        dtype: torch.dtype,
        device: torch.device,
        method: Method = "fused",
    ) -> None:
        """Collective over `world`, all ranks of the run, of which `group` has some: what one cannot do none does.

        Raises KernelError, on all of them, where one cannot map the memory of another.
        """
        if method not in get_args(Method):
            raise KernelError(f"all-reduce method {method!r} is not known. Known: {', '.join(get_args(Method))}.")
        self._group = group
        self._method = method
        try:
            own = together(world, lambda: _allocate(group, max_tokens, hidden, dtype, device, method))
            handles = [together(world, partial(symmetric.rendezvous, tensor, group)) for tensor in own]
            programs = _programs(world, max_tokens, device)
            together(world, lambda: _settle(handles[-1], device))
        except RankError as error:
            raise KernelError(
                f"the ranks cannot map each other's memory ({error}): they must be GPUs of one host that reach each "
                "other (`nvidia-smi topo -p2p r`). ProcessGroupReducer needs none."
            ) from error
        addresses = [_addresses(tensor, handle) for tensor, handle in zip(own, handles, strict=True)]
        calls_P = torch.zeros(programs, dtype=torch.int32, device=device)
        rank, owned = group.rank(), (*own, *handles)
        if method == "push":
            self._push = PushExchange(addresses[0], calls_P, rank, max_tokens, hidden, owned)
        else:
            self._exchange = Exchange(addresses[0], addresses[1], calls_P, rank, max_tokens, hidden, dtype, owned)
            self._buffer_TH = own[0][0]

    def reduce(self, partial_TH: torch.Tensor) -> torch.Tensor:
        """See `all_reduce_reference.Reducer`."""
        if self._method == "fused":
            return all_reduce_triton.reduce(self._exchange, partial_TH)
        if self._method == "push":
            return all_reduce_push.reduce(self._push, partial_TH)
        exchange = self._exchange
        check_partial(partial_TH, exchange.max_tokens, exchange.hidden, exchange.dtype)
        total_TH: torch.Tensor = torch.ops.symm_mem.one_shot_all_reduce_copy(
            self._buffer_TH[: len(partial_TH)], partial_TH.contiguous(), "sum", self._group.group_name
        )
        return total_TH

    def reduce_add_norm(
        self, partial_TH: torch.Tensor, residual_TH: torch.Tensor, weight_H: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        """See `all_reduce_reference.Reducer`."""
        if self._method == "fused":
            return all_reduce_triton.reduce_add_norm(self._exchange, partial_TH, residual_TH, weight_H, epsilon)
        if self._method == "push":
            return all_reduce_push.reduce_add_norm(self._push, partial_TH, residual_TH, weight_H, epsilon)
        return norm_triton.add_norm(residual_TH, self.reduce(partial_TH), weight_H, epsilon)

    def reduce_routes_add_norm(
        self,
        rows_PH: torch.Tensor,
        index_P: torch.Tensor,
        experts: int,
        residual_TH: torch.Tensor,
        weight_H: torch.Tensor,
        epsilon: float,
    ) -> torch.Tensor:
        """See `all_reduce_reference.Reducer`."""
        if self._method == "push":
            return all_reduce_push.reduce_routes_add_norm(
                self._push, rows_PH, index_P, experts, residual_TH, weight_H, epsilon
            )
        partial_TH = norm_triton.sum_routes(rows_PH, index_P, residual_TH, experts)
        return self.reduce_add_norm(partial_TH, residual_TH, weight_H, epsilon)


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
