"""One-shot all-reduce in CUDA C++ that writes to the other ranks instead of reading from them, fused as the Triton one.

`cuda/all_reduce_push.cu` says how. The reference is `all_reduce_reference.ProcessGroupReducer`.

Shape legend: T tokens, H hidden, G ranks, P blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from gptoss_dist.errors import KernelError
from gptoss_dist.kernels import cuda_program
from gptoss_dist.kernels.all_reduce_arguments import check_partial

FILES = ("operations.cuh", "all_reduce_push.cu")
SLOTS = 2
"""Calls whose rows are kept: a call's slots are written again two calls later."""
THREADS = 384
_SHARED_BYTES = THREADS // 32 * 4


@dataclass(frozen=True)
class PushExchange:
    """One rank's view of the memory that all ranks map."""

    slot_G: torch.Tensor
    """int64 addresses here of every rank's slots, int32 [SLOTS, G, max_tokens, H], zeros before the first call."""
    calls_P: torch.Tensor
    """int32, calls made by each block of this rank; zeros at the start, on all ranks alike."""
    rank: int
    max_tokens: int
    hidden: int
    owned: tuple[object, ...] = field(default=(), repr=False)
    """What keeps the memory mapped."""


def reduce_add_norm(
    exchange: PushExchange,
    partial_TH: torch.Tensor,
    bias_H: torch.Tensor | None,
    residual_TH: torch.Tensor,
    weight_H: torch.Tensor,
    epsilon: float,
) -> torch.Tensor:
    """See `all_reduce_reference.Reducer.reduce_add_norm`. Everything is bfloat16, rows are contiguous."""
    return _launch(exchange, partial_TH, bias_H, residual_TH, weight_H, epsilon)


def reduce(exchange: PushExchange, partial_TH: torch.Tensor) -> torch.Tensor:
    """See `all_reduce_reference.Reducer.reduce`."""
    return _launch(exchange, partial_TH, None, None, None, 0.0)


def name_of(world_size: int, hidden: int) -> str:
    """The kernel in C++."""
    return f"reduce_push<{world_size}, {hidden}>"


def _launch(
    exchange: PushExchange,
    partial_TH: torch.Tensor,
    bias_H: torch.Tensor | None,
    residual_TH: torch.Tensor | None,
    weight_H: torch.Tensor | None,
    epsilon: float,
) -> torch.Tensor:
    check_partial(partial_TH, exchange.max_tokens, exchange.hidden, torch.bfloat16)
    given = [part for part in (partial_TH, bias_H, residual_TH, weight_H) if part is not None]
    if any(part.dtype != torch.bfloat16 or not part.is_contiguous() for part in given):
        raise KernelError(
            "the all-reduce that pushes takes contiguous bfloat16, and was given "
            f"{', '.join(f'{part.dtype} {tuple(part.shape)}' for part in given)}. The fused one takes any."
        )
    tokens, hidden = partial_TH.shape
    out_TH = torch.empty_like(partial_TH)
    if not tokens:
        return out_TH
    name, device = name_of(len(exchange.slot_G), hidden), partial_TH.device
    kernel = cuda_program.kernels_of(FILES, (name,), device.index)[0]
    kernel(
        (min(tokens, len(exchange.calls_P)), 1), THREADS, _SHARED_BYTES,
        partial_TH, partial_TH if bias_H is None else bias_H, partial_TH if residual_TH is None else residual_TH,
        partial_TH if weight_H is None else weight_H, out_TH, exchange.slot_G, exchange.calls_P,
        tokens, exchange.max_tokens, exchange.rank, int(bias_H is not None), int(residual_TH is not None), epsilon,
        early=True,
    )  # fmt: skip
    return out_TH
