"""One-shot all-reduce in CUDA C++ that writes to the other ranks instead of reading from them.

The sum over a token's routes before it, the residual and the norm after it are in the same launch.
`cuda/all_reduce_push.cu` says how. The reference is `all_reduce_reference.ProcessGroupReducer`.

Shape legend: T tokens, H hidden, G ranks, P blocks; of rows and index, P = T · (experts per token) routes.
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
_FOUR = {torch.bfloat16: "uint2", torch.float32: "float4"}
"""What four values are in C++."""


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


def reduce(exchange: PushExchange, partial_TH: torch.Tensor) -> torch.Tensor:
    """See `all_reduce_reference.Reducer.reduce`. Everything is contiguous, and bfloat16 where nothing else is said."""
    return _launch(exchange, partial_TH, None, 0, None, None, 0.0)


def reduce_add_norm(
    exchange: PushExchange,
    partial_TH: torch.Tensor,
    residual_TH: torch.Tensor,
    weight_H: torch.Tensor,
    epsilon: float,
) -> torch.Tensor:
    """See `all_reduce_reference.Reducer.reduce_add_norm`."""
    return _launch(exchange, partial_TH, None, 0, residual_TH, weight_H, epsilon)


def reduce_routes_add_norm(
    exchange: PushExchange,
    rows_PH: torch.Tensor,
    index_P: torch.Tensor,
    experts: int,
    residual_TH: torch.Tensor,
    weight_H: torch.Tensor,
    epsilon: float,
) -> torch.Tensor:
    """See `all_reduce_reference.Reducer.reduce_routes_add_norm`. Rows are float32 or bfloat16, `index_P` is int32."""
    return _launch(exchange, rows_PH, index_P, experts, residual_TH, weight_H, epsilon)


def name_of(world_size: int, hidden: int, routes: int, dtype: torch.dtype) -> str:
    """The kernel in C++ for partials (`routes` = 0) or so many routes a token, whose rows have `dtype`."""
    return f"reduce_push<{world_size}, {hidden}, {routes}, {_FOUR[dtype]}>"


def _launch(
    exchange: PushExchange,
    rows: torch.Tensor,
    index_P: torch.Tensor | None,
    experts: int,
    residual_TH: torch.Tensor | None,
    weight_H: torch.Tensor | None,
    epsilon: float,
) -> torch.Tensor:
    like_TH = rows if residual_TH is None else residual_TH
    _check(exchange, rows, index_P, like_TH, weight_H)
    tokens, hidden = like_TH.shape
    out_TH = torch.empty_like(like_TH)
    if not tokens:
        return out_TH
    name = name_of(len(exchange.slot_G), hidden, len(rows) // tokens if index_P is not None else 0, rows.dtype)
    kernel = cuda_program.kernels_of(FILES, (name,), rows.device.index)[0]
    kernel(
        (min(tokens, len(exchange.calls_P)), 1), THREADS, _SHARED_BYTES,
        rows, exchange.calls_P if index_P is None else index_P, like_TH, like_TH if weight_H is None else weight_H,
        out_TH, exchange.slot_G, exchange.calls_P,
        tokens, exchange.max_tokens, exchange.rank, experts, int(residual_TH is not None), epsilon,
        early=True,
    )  # fmt: skip
    return out_TH


def _check(
    exchange: PushExchange,
    rows: torch.Tensor,
    index_P: torch.Tensor | None,
    like_TH: torch.Tensor,
    weight_H: torch.Tensor | None,
) -> None:
    check_partial(like_TH, exchange.max_tokens, exchange.hidden, torch.bfloat16)
    plain = all(part is None or part.dtype == torch.bfloat16 for part in (rows if index_P is None else None, weight_H))
    routes = index_P is None or (index_P.dtype == torch.int32 and rows.dtype in _FOUR)
    given = [part for part in (rows, index_P, like_TH, weight_H) if part is not None]
    if not (plain and routes and all(part.is_contiguous() for part in given)):
        raise KernelError(
            "the all-reduce that pushes takes contiguous bfloat16, rows of routes also in float32 with an index of "
            f"int32, and was given {', '.join(f'{part.dtype} {tuple(part.shape)}' for part in given)}. The fused one "
            "takes any."
        )
