"""The fused all-reduce: its arithmetic, real processes that run it at once, and its signalling, every order of it."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

import torch
from interpreted import interpreted
from kernel_compile import compile_kernel

from gptoss_dist.errors import KernelError
from gptoss_dist.kernels import all_reduce_triton
from gptoss_dist.kernels.all_reduce_reference import LocalReducer
from gptoss_dist.kernels.all_reduce_symmetric import symmetric_reducer
from gptoss_dist.kernels.all_reduce_triton import BUFFERS, FusedReducer
from gptoss_dist.kernels.reducer import Norm, Routes
from gptoss_dist.runtime.dist import RankGroup

EPSILON = 1e-5
PROGRAMS = 2
"""Of a reducer: some take several rows."""


@dataclass
class Memory:
    """What the ranks share: buffers and flags of each, in memory that forked processes see at the same addresses."""

    buffers: list[torch.Tensor]
    flags: list[torch.Tensor]
    dtype: torch.dtype

    @classmethod
    def of(cls, world, max_tokens, hidden, dtype):
        shape = (BUFFERS, max_tokens, hidden)
        buffers = [torch.full(shape, torch.nan).to(dtype).share_memory_() for _ in range(world)]
        programs = min(max_tokens, PROGRAMS)
        return cls(buffers, [torch.zeros(programs, world, dtype=torch.int32).share_memory_() for _ in buffers], dtype)

    def seen_by(self, rank, first_call=0):
        _, max_tokens, hidden = self.buffers[0].shape
        return FusedReducer(
            buffer_G=torch.tensor([buffer.data_ptr() for buffer in self.buffers]),
            flag_G=torch.tensor([flags.data_ptr() for flags in self.flags]),
            calls_P=torch.full((min(max_tokens, PROGRAMS),), first_call, dtype=torch.int32),
            rank=rank,
            max_tokens=max_tokens,
            hidden=hidden,
            dtype=self.dtype,
        )


def in_rank_order(partials):
    total = torch.zeros(partials[0].shape)
    for partial in partials:
        total = total + partial.float()
    return total


def check_one_call(memory, reducer, partials, residual_TH, weight_H):
    """Call as one rank whose peers have written and signalled everything already."""
    tokens, rank = len(partials[0]), reducer.rank
    call = int(reducer.calls_P[0]) + 1
    for peer, partial_TH in enumerate(partials):
        if peer != rank:
            memory.buffers[peer][call % BUFFERS, :tokens] = partial_TH
            memory.flags[rank][:, peer] = call
    wanted_residual = residual_TH.clone()
    wanted = LocalReducer().reduce_add_norm(in_rank_order(partials), Norm(wanted_residual, weight_H, EPSILON))
    found = reducer.reduce_add_norm(partials[rank], Norm(residual_TH, weight_H, EPSILON))
    assert torch.equal(residual_TH, wanted_residual)
    torch.testing.assert_close(found, wanted, rtol=2 * torch.finfo(found.dtype).eps, atol=1e-6)
    assert torch.equal(memory.buffers[rank][call % BUFFERS, :tokens], partials[rank])
    programs = min(tokens, PROGRAMS)
    for peer in set(range(len(partials))) - {rank}:
        assert (memory.flags[peer][:programs, rank] == call).all()
    assert (reducer.calls_P[:programs] == call).all()


@interpreted
def test_every_rank_adds_in_rank_order_and_norms():
    hidden, max_tokens = 24, 5
    for dtype in (torch.float32, torch.float16):
        for world in (2, 3):
            for rank in range(world):
                memory = Memory.of(world, max_tokens, hidden, dtype)
                reducer = memory.seen_by(rank)
                for tokens in (2, 5, 3):
                    partials = [torch.randn(tokens, hidden).to(dtype) for _ in range(world)]
                    residual_TH, weight_H = torch.randn(tokens, hidden).to(dtype), torch.randn(hidden)
                    check_one_call(memory, reducer, partials, residual_TH, weight_H)


@interpreted
def test_routes_are_summed_before():
    """Those of experts here: the others' rows may hold anything."""
    memory = Memory.of(1, 3, 24, torch.float32)
    reducer = memory.seen_by(0)
    rows_PH, index_P = torch.randn(6, 24), torch.tensor([0, 4, -1, 3, 2, 1])
    rows_PH[[1, 2]] = torch.nan
    residual_TH, weight_H = torch.randn(3, 24), torch.randn(24)
    wanted_residual = residual_TH + torch.stack([rows_PH[0], rows_PH[3], rows_PH[4] + rows_PH[5]])
    found = reducer.reduce_add_norm(Routes(rows_PH, index_P, 4), Norm(residual_TH, weight_H, EPSILON))
    torch.testing.assert_close(residual_TH, wanted_residual)
    torch.testing.assert_close(found, weight_H * torch.nn.functional.rms_norm(wanted_residual, (24,), eps=EPSILON))


@interpreted
def test_call_numbers_may_wrap():
    memory = Memory.of(2, 1, 8, torch.float32)
    reducer = memory.seen_by(0, first_call=2**31 - 2)
    memory.buffers[1].fill_(2.0)
    memory.flags[0].fill_(-(2**31))  # the peer is one call ahead
    for call in (2**31 - 1, -(2**31)):
        assert torch.equal(reducer.reduce(torch.ones(1, 8)), torch.full((1, 8), 3.0))
        assert reducer.calls_P.tolist() == [call]


def _rank_body(memory, rank, steps, seed, results):
    torch.set_num_threads(1)
    reducer = memory.seen_by(rank)
    for step in range(steps):
        tokens = 1 + (step + seed) % 3
        generator = torch.Generator().manual_seed(seed + 100 * step + rank)
        partial_TH = torch.randn(tokens, reducer.hidden, generator=generator)
        results[step, rank, :tokens] = reducer.reduce(partial_TH)


@interpreted
def test_processes_that_run_at_once_get_the_same_bits():
    world, steps, hidden, seed = 2, 12, 8, int(torch.randint(1000, (1,)))
    memory = Memory.of(world, 3, hidden, torch.float32)
    results = torch.full((steps, world, 3, hidden), torch.nan).share_memory_()
    context = multiprocessing.get_context("fork")
    bodies = [
        context.Process(target=_rank_body, args=(memory, rank, steps, seed, results), daemon=True)
        for rank in range(world)
    ]
    for body in bodies:
        body.start()
    for body in bodies:
        body.join(60)
    assert [body.exitcode for body in bodies] == [0] * world, "a rank waits for ever, or failed"
    for step in range(steps):
        tokens = 1 + (step + seed) % 3
        partials = [
            torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(seed + 100 * step + rank))
            for rank in range(world)
        ]
        for rank in range(world):
            assert torch.equal(results[step, rank, :tokens], in_rank_order(partials))


def test_symmetric_memory_without_a_gpu_is_refused():
    cpu = torch.device("cpu")
    wanted = r"rank 0: symmetric memory needs GPUs, and this rank runs on cpu.* ProcessGroupReducer needs none"
    with pytest.raises(KernelError, match=wanted):
        symmetric_reducer(RankGroup(0, 0, 1, cpu), None, 4, 16, torch.float32, cpu)


def test_a_partial_that_does_not_fit_is_refused():
    reducer = Memory.of(2, 4, 16, torch.float32).seen_by(0)
    with pytest.raises(KernelError, match=r"5 × 16 .* at most 4 × 16"):
        reducer.reduce(torch.zeros(5, 16))


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("world", [2, 8])
def test_nothing_spills_and_flags_are_ordered_at_system_scope(capability, world):
    rows = ("partial", "residual", "out")
    signature = dict.fromkeys(rows, "*bf16") | {"weight": "*fp32", "buffers": "*i64", "flags": "*i64"}
    signature |= {"calls": "*i32", "tokens": "i32", "partial_stride": "i32", "residual_stride": "i32"}
    made = compile_kernel(
        all_reduce_triton._reduce_kernel,
        signature | {"epsilon": "fp32"},
        {
            "RANK": 1,
            "WORLD": world,
            "MAX_TOKENS": 64,
            "HIDDEN": 2880,
            "BUFFERS": BUFFERS,
            "NORM": True,
            "BLOCK": 4096,
            "BLOCK_WORLD": world,
            "DEPENDENT": capability >= 90,
        },
        capability,
        aligned=(*rows, "weight", "partial_stride", "residual_stride"),
        num_warps=all_reduce_triton._WARPS,
    )
    assert made.spilled_bytes == 0
    lines = [line.split("//")[0].strip() for line in made.ptx.splitlines()]
    release = next(place for place, line in enumerate(lines) if "atom.global.sys.release.exch" in line)
    acquire = next(place for place, line in enumerate(lines) if "atom.global.sys.acquire.add" in line)
    barriers = [place for place, line in enumerate(lines) if line.startswith("bar.sync")]
    stored = max(place for place, line in enumerate(lines[:release]) if "st.global.v4" in line)
    read = next(place for place, line in enumerate(lines) if place > acquire and "ld.global.v4" in line)
    assert any(stored < barrier < release for barrier in barriers)
    assert any(acquire < barrier < read for barrier in barriers)


# The signalling as a program of small steps, and every interleaving of `world` ranks that run it. A rank's state is
# (call, step); what others can see is the call whose content each buffer holds (None while it is written), and flags.


def program_of(world, rank, early_signal):
    peers = [peer for peer in range(world) if peer != rank]
    write, signal = [("begin",), ("end",)], [("signal", peer) for peer in peers]
    return [
        *(signal + write if early_signal else write + signal),
        *(("wait", peer) for peer in peers),
        *(("read", peer) for peer in peers),
    ]


def explore(world, buffers, calls, *, early_signal=False, exactly=False):
    """'right', or what goes wrong first: 'torn' when a rank reads a buffer without the content of its call, 'stuck'."""
    programs = [program_of(world, rank, early_signal) for rank in range(world)]
    start = (((1, 0),) * world, ((None,) * buffers,) * world, ((0,) * world,) * world)
    seen, left = {start}, [start]
    while left:
        state = left.pop()
        moves = [move(state, rank, programs[rank], buffers, calls, exactly) for rank in range(world)]
        if "torn" in moves:
            return "torn"
        if all(made is None for made in moves) and any(call <= calls for call, _ in state[0]):
            return "stuck"
        fresh = {made for made in moves if made is not None} - seen
        seen |= fresh
        left.extend(fresh)
    return "right"


def with_item(items, place, item):
    return (*items[:place], item, *items[place + 1 :])


def move(state, rank, program, buffers, calls, exactly):
    """The state after the next step of one rank; None if it waits or has finished; 'torn'."""
    where, content, flags = state
    call, step = where[rank]
    if call > calls:
        return None
    kind, *peers = program[step]
    if kind in ("begin", "end"):
        held = None if kind == "begin" else call
        content = with_item(content, rank, with_item(content[rank], call % buffers, held))
    elif kind == "signal":
        flags = with_item(flags, peers[0], with_item(flags[peers[0]], rank, call))
    elif kind == "wait":
        flag = flags[rank][peers[0]]
        if not (flag == call if exactly else flag >= call):
            return None
    elif content[peers[0]][call % buffers] != call:
        return "torn"
    following = (call, step + 1) if step + 1 < len(program) else (call + 1, 0)
    return with_item(where, rank, following), content, flags


@pytest.mark.parametrize(("world", "calls"), [(2, 6), (3, 4)])
def test_no_rank_ever_reads_a_buffer_that_is_being_overwritten(world, calls):
    assert explore(world, BUFFERS, calls) == "right"


@pytest.mark.parametrize("world", [2, 3])
def test_one_buffer_less_or_another_order_goes_wrong(world):
    assert explore(world, BUFFERS - 1, 3) == "torn"
    assert explore(world, BUFFERS, 3, early_signal=True) == "torn"
    assert explore(world, BUFFERS, 3, exactly=True) == "stuck"
