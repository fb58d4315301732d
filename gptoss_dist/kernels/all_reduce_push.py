"""One-shot all-reduce in CUDA C++ that writes to the other ranks instead of reading from them.

The sum over a token's routes before it, the residual and the norm after it are in the same launch.
`cuda/all_reduce_push.cu` says how. The reference is `all_reduce_reference.ProcessGroupReducer`.

Shape legend: T tokens, H hidden, G ranks, P blocks; of an index, P = T · (experts per token) routes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from gptoss_dist.errors import KernelError
from gptoss_dist.kernels import cuda_program
from gptoss_dist.kernels.all_reduce_arguments import check_partial
from gptoss_dist.kernels.reducer import Norm, Routes

FILES = ("operations.cuh", "all_reduce_push.cu")
SLOTS = 2
"""Calls whose rows are kept: a call's slots are written again two calls later."""
THREADS = 384
_SHARED_BYTES = THREADS // 32 * 4
_FOUR = {torch.bfloat16: "uint2", torch.float32: "float4"}
"""What four values are in C++."""


@dataclass(frozen=True)
class PushReducer:
    """One rank's view of the memory that all ranks map, and the sums over it (see `Reducer`).

    All tensors are contiguous and bfloat16; rows of routes may be float32, and their index is int32.
    """

    slot_G: torch.Tensor
    """int64 addresses here of every rank's slots, int32 [SLOTS, G, max_tokens, H], zeros before the first call."""
    calls_P: torch.Tensor
    """int32, calls made by each block of this rank; zeros at the start, on all ranks alike."""
    rank: int
    max_tokens: int
    hidden: int
    owned: tuple[object, ...] = field(default=(), repr=False)
    """What keeps the memory mapped."""

    def reduce(self, partial_TH: torch.Tensor) -> torch.Tensor:
        """See `Reducer`."""
        return self._launch(partial_TH, None)

    def reduce_add_norm(self, partial: torch.Tensor | Routes, norm: Norm) -> torch.Tensor:
        """See `Reducer`."""
        return self._launch(partial, norm)

    def _launch(self, partial: torch.Tensor | Routes, norm: Norm | None) -> torch.Tensor:
        rows, index_P, experts = partial if isinstance(partial, Routes) else (partial, None, 0)
        # Without a norm the kernel reads neither residual nor weights.
        residual, weight, epsilon = (rows, rows, 0.0) if norm is None else norm
        self._check(partial, norm)
        tokens, hidden = residual.shape
        out_TH = torch.empty_like(residual)
        if not tokens:
            return out_TH
        routes = 0 if index_P is None else len(rows) // tokens
        name = name_of(len(self.slot_G), hidden, routes, rows.dtype)
        kernel = cuda_program.kernels_of(FILES, (name,), rows.device.index)[0]
        kernel(
            (min(tokens, len(self.calls_P)), 1), THREADS, _SHARED_BYTES,
            rows, self.calls_P if index_P is None else index_P, residual, weight,
            out_TH, self.slot_G, self.calls_P,
            tokens, self.max_tokens, self.rank, experts, int(norm is not None), epsilon,
            early=True,
        )  # fmt: skip
        return out_TH

    def _check(self, partial: torch.Tensor | Routes, norm: Norm | None) -> None:
        plain = (torch.bfloat16,)
        if isinstance(partial, Routes):
            given = [(partial.rows_PH, tuple(_FOUR)), (partial.index_P, (torch.int32,))]
        else:
            given = [(partial, plain)]
        if norm is not None:
            given += [(norm.residual_TH, plain), (norm.weight_H, plain)]
        like_TH = given[0][0] if norm is None else norm.residual_TH
        check_partial(like_TH, self.max_tokens, self.hidden, torch.bfloat16)
        if not all(part.dtype in dtypes and part.is_contiguous() for part, dtypes in given):
            raise KernelError(
                "the all-reduce that pushes takes contiguous bfloat16, rows of routes also in float32 with an index of "
                f"int32, and was given {', '.join(f'{part.dtype} {tuple(part.shape)}' for part, _ in given)}. The "
                "fused one takes any."
            )


def name_of(world_size: int, hidden: int, routes: int, dtype: torch.dtype) -> str:
    """The kernel in C++ for partials (`routes` = 0) or so many routes a token, whose rows have `dtype`."""
    return f"reduce_push<{world_size}, {hidden}, {routes}, {_FOUR[dtype]}>"
