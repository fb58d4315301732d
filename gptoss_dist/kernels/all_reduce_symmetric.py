"""The reducer over torch's symmetric memory: every GPU of the group maps the buffers of all others.

Shape legend: T tokens, H hidden.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric

from gptoss_dist.errors import KernelError
from gptoss_dist.kernels import all_reduce_push, all_reduce_triton, norm_triton
from gptoss_dist.kernels.all_reduce_arguments import check_partial
from gptoss_dist.kernels.all_reduce_push import PushExchange
from gptoss_dist.kernels.all_reduce_reference import with_bias
from gptoss_dist.kernels.all_reduce_triton import Exchange

Method = Literal["fused", "push", "one_shot"]


class SymmetricReducer:
    """Ranks whose GPUs reach each other's memory; calls must be alike on all ranks.

    `method`: "fused" is `all_reduce_triton`, one launch with all that follows the sum; "push" is `all_reduce_push`, the
    same in CUDA C++ for bfloat16, not yet run on GPUs; "one_shot" is torch's `symm_mem::one_shot_all_reduce_copy`
    (float32 or bfloat16; it adds in rank order, rounding each sum to the dtype), then `norm_triton.add_norm`.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        max_tokens: int,
        hidden: int,
        dtype: torch.dtype,
        device: torch.device,
        method: Method = "fused",
    ) -> None:
        """Collective over `group`. Raises KernelError where the memory of another rank cannot be mapped."""
        if device.type != "cuda":
            raise KernelError(f"symmetric memory needs GPUs, and this rank runs on {device}: use ProcessGroupReducer.")
        if method not in get_args(Method):
            raise KernelError(f"all-reduce method {method!r} is not known. Known: {', '.join(get_args(Method))}.")
        self._group = group
        self._method = method
        try:
            if method == "push":
                self._push = _map_slots(group, max_tokens, hidden, device)
            else:
                self._exchange, self._buffer_TH = _map(group, max_tokens, hidden, dtype, device)
        except RuntimeError as error:
            raise KernelError(
                f"rank {group.rank()} cannot map the memory of the other {group.size() - 1} ranks ({error}): they must "
                "be GPUs of one host that reach each other (`nvidia-smi topo -p2p r`). ProcessGroupReducer needs none."
            ) from error

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
        self,
        partial_TH: torch.Tensor,
        bias_H: torch.Tensor | None,
        residual_TH: torch.Tensor,
        weight_H: torch.Tensor,
        epsilon: float,
    ) -> torch.Tensor:
        """See `all_reduce_reference.Reducer`."""
        if self._method == "fused":
            return all_reduce_triton.reduce_add_norm(self._exchange, partial_TH, bias_H, residual_TH, weight_H, epsilon)
        if self._method == "push":
            return all_reduce_push.reduce_add_norm(self._push, partial_TH, bias_H, residual_TH, weight_H, epsilon)
        return norm_triton.add_norm(residual_TH, with_bias(self.reduce(partial_TH), bias_H), weight_H, epsilon)


def _map(
    group: dist.ProcessGroup, max_tokens: int, hidden: int, dtype: torch.dtype, device: torch.device
) -> tuple[Exchange, torch.Tensor]:
    """The exchange, and this rank's first buffer as a tensor."""
    programs = all_reduce_triton.programs_for(max_tokens)
    buffer = symmetric.empty((all_reduce_triton.BUFFERS, max_tokens, hidden), dtype=dtype, device=device)
    flags = symmetric.empty((programs, group.size()), dtype=torch.int32, device=device)
    flags.zero_()
    handles = [symmetric.rendezvous(tensor, group) for tensor in (buffer, flags)]
    exchange = Exchange(
        buffer_G=_addresses(buffer, handles[0]),
        flag_G=_addresses(flags, handles[1]),
        calls_P=torch.zeros(programs, dtype=torch.int32, device=device),
        rank=group.rank(),
        max_tokens=max_tokens,
        hidden=hidden,
        dtype=dtype,
        owned=(buffer, flags, *handles),
    )
    handles[1].barrier()  # on the stream: nobody signals before all flags are zero
    torch.cuda.synchronize(device)
    return exchange, buffer[0]


def _map_slots(group: dist.ProcessGroup, max_tokens: int, hidden: int, device: torch.device) -> PushExchange:
    """Slots of every rank; nobody writes to them before all are zero."""
    shape = (all_reduce_push.SLOTS, group.size(), max_tokens, hidden)
    slots = symmetric.empty(shape, dtype=torch.int32, device=device)
    slots.zero_()
    handle = symmetric.rendezvous(slots, group)
    blocks = min(max_tokens, all_reduce_push.MOST_BLOCKS)
    exchange = PushExchange(
        slot_G=_addresses(slots, handle),
        calls_P=torch.zeros(blocks, dtype=torch.int32, device=device),
        rank=group.rank(),
        max_tokens=max_tokens,
        hidden=hidden,
        owned=(slots, handle),
    )
    handle.barrier()
    torch.cuda.synchronize(device)
    return exchange


def _addresses(tensor: torch.Tensor, handle: Any) -> torch.Tensor:
    """int64: where this process finds every rank's copy of a symmetric tensor."""
    offset = tensor.data_ptr() - handle.buffer_ptrs[handle.rank]
    return torch.tensor([address + offset for address in handle.buffer_ptrs], dtype=torch.int64, device=tensor.device)
