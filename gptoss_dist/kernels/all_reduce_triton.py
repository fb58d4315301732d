"""One-shot all-reduce over memory that all ranks of a host map, fused with residual and RMSNorm: one launch.

The reference is `all_reduce_reference.ProcessGroupReducer`. Program p of every rank works on rows p, p + P, … and talks
only to program p of the other ranks. In its call number n it

1. writes its partial rows to its own buffer number n mod `BUFFERS`;
2. stores n to its flag on every other rank: a release at system scope by one thread, after a barrier of the program, so
   that all threads' writes of step 1, and all their reads of call n − 1, come before it;
3. waits until every other rank's flag here is n or later: an acquire at system scope, then a barrier of the program, so
   that all threads' reads of step 4 come after it;
4. reads all ranks' buffers of call n and adds them in rank order in float32: the same operations in the same order on
   every rank, hence the same bits (`all_reduce_reference` says why that matters).

Two buffers suffice: rank a overwrites the buffer of call n in call n + 2, after its wait of call n + 1; each rank b set
flag n + 1 after it had finished its reads of call n. With one buffer the write of call n + 1 would meet b's reads of n.
Flags are never reset: they hold call numbers, and a rank may find its peer one call ahead, which is why step 3 asks for
"n or later". The call number lives on the device, a counter a program that the kernel itself advances, so a CUDA graph
may be replayed any number of times; it may wrap, since only differences are compared. All ranks must make the same
calls with the same number of tokens, on one stream. Which program owns a row does not depend on the number of tokens,
so calls of different sizes may follow each other. P is at most the number of SMs of the ranks' smallest GPU, as whoever
makes the exchange sees to: all programs are resident at once and none waits for one that cannot start.

Multicast (NVLink SHARP) is not used.

Shape legend: T tokens, H hidden, G ranks, P programs.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, attr-defined, assignment, var-annotated"

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import triton
import triton.language as tl

from gptoss_dist.kernels import dependent_launch
from gptoss_dist.kernels.all_reduce_arguments import check_partial
from gptoss_dist.kernels.blocks import padded_to_power
from gptoss_dist.kernels.dependent_launch import let_next_start, wait_for_previous
from gptoss_dist.kernels.norm_triton import normed_row, sum_routes
from gptoss_dist.kernels.reducer import Norm, Routes

BUFFERS = 2
"""A power of two, so that the call number may wrap."""
_WARPS = 8


@dataclass(frozen=True)
class FusedReducer:
    """One rank's view of the memory that all ranks map, and the sums over it (see `Reducer`)."""

    buffer_G: torch.Tensor
    """int64 addresses here of every rank's buffers, [BUFFERS, max_tokens, hidden] of `dtype`."""
    flag_G: torch.Tensor
    """int64 addresses here of every rank's flags, int32 [P, G]: the last call that rank g's program p has written."""
    calls_P: torch.Tensor
    """int32, calls made by each program of this rank; zero at the start, on all ranks alike."""
    rank: int
    max_tokens: int
    hidden: int
    dtype: torch.dtype
    owned: tuple[object, ...] = field(default=(), repr=False)
    """What keeps the memory mapped."""

    def reduce(self, partial_TH: torch.Tensor) -> torch.Tensor:
        """See `Reducer`."""
        return self._launch(partial_TH, None)

    def reduce_add_norm(self, partial: torch.Tensor | Routes, norm: Norm) -> torch.Tensor:
        """See `Reducer`. Routes are summed in a launch of their own."""
        if isinstance(partial, Routes):
            partial = sum_routes(partial.rows_PH, partial.index_P, norm.residual_TH, partial.experts)
        return self._launch(partial, norm)

    def _launch(self, partial_TH: torch.Tensor, norm: Norm | None) -> torch.Tensor:
        check_partial(partial_TH, self.max_tokens, self.hidden, self.dtype)
        # Without a norm the kernel reads neither residual nor weights.
        residual, weight, epsilon = (partial_TH, partial_TH, 0.0) if norm is None else norm
        tokens, hidden = partial_TH.shape
        out_TH = torch.empty((tokens, hidden), dtype=residual.dtype, device=partial_TH.device)
        if tokens == 0:
            return out_TH
        assert partial_TH.stride(1) == residual.stride(1) == 1
        _reduce_kernel[(min(tokens, len(self.calls_P)),)](
            partial_TH,
            residual,
            weight,
            out_TH,
            self.buffer_G,
            self.flag_G,
            self.calls_P,
            tokens,
            partial_TH.stride(0),
            residual.stride(0),
            epsilon,
            RANK=self.rank,
            WORLD=len(self.buffer_G),
            MAX_TOKENS=self.max_tokens,
            HIDDEN=hidden,
            BUFFERS=BUFFERS,
            NORM=norm is not None,
            BLOCK=padded_to_power(hidden),
            BLOCK_WORLD=padded_to_power(len(self.buffer_G)),
            num_warps=_WARPS,
            **dependent_launch.options(partial_TH.device),
        )
        return out_TH


@triton.jit
def _exchange_flags(flags, call, RANK: tl.constexpr, WORLD: tl.constexpr, BLOCK_WORLD: tl.constexpr):
    """Steps 2 and 3: tell every other rank that `call` is written, and wait until each has told the same."""
    program = tl.program_id(0)
    rank = tl.arange(0, BLOCK_WORLD)
    others = (rank < WORLD) & (rank != RANK)
    theirs = tl.load(flags + rank, mask=others, other=0).to(tl.pointer_type(tl.int32))
    mine = tl.load(flags + RANK).to(tl.pointer_type(tl.int32))
    tl.debug_barrier()
    tl.atomic_xchg(theirs + program * WORLD + RANK, call, mask=others, sem="release", scope="sys")
    late = 1
    while late > 0:
        seen = tl.atomic_add(mine + program * WORLD + rank, 0, mask=others, sem="acquire", scope="sys")
        late = tl.sum((others & (seen - call < 0)).to(tl.int32), axis=0)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["tokens"])
def _reduce_kernel(
    partial, residual, weight, out, buffers, flags, calls, tokens, partial_stride, residual_stride, epsilon,
    RANK: tl.constexpr, WORLD: tl.constexpr, MAX_TOKENS: tl.constexpr, HIDDEN: tl.constexpr, BUFFERS: tl.constexpr,
    NORM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_WORLD: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Rows p, p + P, … of one call; with NORM the residual and the norm, else the plain sum."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < HIDDEN
    dtype = partial.dtype.element_ty
    call = tl.load(calls + program) + 1
    buffer = (call & (BUFFERS - 1)) * (MAX_TOKENS * HIDDEN)
    peers = ()  # their addresses, read before the wait
    for rank in tl.static_range(WORLD):
        peers += (tl.load(buffers + rank).to(tl.pointer_type(dtype)),)
    own = peers[RANK]
    for token in range(program, tokens, tl.num_programs(0)):
        row = tl.load(partial + token * partial_stride + column, mask=inside)
        tl.store(tl.multiple_of(own + buffer + token * HIDDEN, 16) + column, row, mask=inside)
    if NORM:
        weights = tl.load(weight + column, mask=inside, other=0.0)
    _exchange_flags(flags, call, RANK, WORLD, BLOCK_WORLD)
    for token in range(program, tokens, tl.num_programs(0)):
        total = tl.zeros([BLOCK], dtype=tl.float32)
        for rank in tl.static_range(WORLD):
            place = tl.multiple_of(peers[rank] + buffer + token * HIDDEN, 16) + column
            total += tl.load(place, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            place = residual + token * residual_stride + column
            row = (tl.load(place, mask=inside, other=0.0).to(tl.float32) + total).to(residual.dtype.element_ty)
            tl.store(place, row, mask=inside)
            total = normed_row(row.to(tl.float32), weights, epsilon, HIDDEN)
        tl.store(out + token * HIDDEN + column, total.to(out.dtype.element_ty), mask=inside)
    tl.store(calls + program, call)
