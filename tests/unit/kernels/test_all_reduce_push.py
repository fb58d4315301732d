"""The all-reduce that pushes: its own code compiled for the CPU (`cuda/host.h`), all ranks at once."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass

import pytest
import torch
from cuda_on_cpu import compile_for_cpu, disassembly, resources

from gptoss_dist.errors import KernelError
from gptoss_dist.kernels import cuda_program
from gptoss_dist.kernels.all_reduce_push import FILES, SLOTS, PushReducer, name_of
from gptoss_dist.kernels.all_reduce_reference import LocalReducer
from gptoss_dist.kernels.norm_reference import sum_routes
from gptoss_dist.kernels.reducer import Norm, Routes

HIDDEN, MAX_TOKENS, BLOCKS, EPSILON = 1640, 5, 3, 1e-5
"""More rows than blocks: some take two."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> ctypes.CDLL:
    return compile_for_cpu("all_reduce_push_host.cpp", tmp_path_factory.mktemp("host"))


@dataclass
class Rank:
    """What one rank has."""

    slots: torch.Tensor
    calls_P: torch.Tensor
    addresses_G: torch.Tensor


def ranks_of(world: int, first_call: int = 0) -> list[Rank]:
    slots = [torch.zeros(SLOTS, world, MAX_TOKENS, HIDDEN, dtype=torch.int32) for _ in range(world)]
    addresses_G = torch.tensor([one.data_ptr() for one in slots])
    return [Rank(one, torch.full((BLOCKS,), first_call, dtype=torch.int32), addresses_G) for one in slots]


def call(compiled, ranks, rows, residuals, weight_H, indices=None, experts=0):
    """One call on all ranks; what each returns. Without residuals: the sum alone. With indices rows are of routes."""
    tokens = len(residuals[0]) if residuals else len(rows[0])
    outs = [torch.full((tokens, HIDDEN), torch.nan).bfloat16() for _ in ranks]
    pointers = (ctypes.c_void_p * (6 * len(ranks)))()
    for number, rank in enumerate(ranks):
        residual = residuals[number] if residuals else rows[number]
        index = indices[number] if indices else rank.calls_P
        tensors = (rows[number], index, residual, outs[number], rank.addresses_G, rank.calls_P)
        pointers[6 * number : 6 * number + 6] = [one.data_ptr() for one in tensors]
    done = compiled.run(
        len(ranks), len(rows[0]) // tokens if indices else 0, int(rows[0].dtype == torch.float32), pointers,
        ctypes.c_void_p(weight_H.data_ptr()), min(tokens, BLOCKS), tokens, MAX_TOKENS, experts,
        int(bool(residuals)), ctypes.c_float(EPSILON),
    )  # fmt: skip
    assert done
    return outs


def seeded() -> None:
    seed = time.time_ns() % 2**31
    print(f"seed {seed}")
    torch.manual_seed(seed)


def check_normed(outs, residuals, partials, residual_TH, weight_H):
    """Against the sum of partials in float32, in rank order, and `LocalReducer`."""
    total_TH = torch.zeros(residual_TH.shape)
    for partial in partials:
        total_TH += partial.float()
    wanted = LocalReducer().reduce_add_norm(total_TH, Norm(residual_TH, weight_H, EPSILON))
    assert all(torch.equal(one, residual_TH) for one in residuals)
    for out in outs:
        assert torch.equal(out, outs[0])
        torch.testing.assert_close(out, wanted, rtol=2 * torch.finfo(torch.bfloat16).eps, atol=1e-6)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("first_call", [0, 2**31 - 2, -2], ids=["from the first", "from the middle", "past the last"])
def test_every_rank_gets_the_same_sum_and_its_norm(compiled, world, first_call):
    seeded()
    ranks = ranks_of(world, first_call)
    for tokens, norm in ((1, True), (5, True), (2, False), (5, False), (1, True)):
        partials = [torch.randn(tokens, HIDDEN).bfloat16() for _ in ranks]
        residual_TH, weight_H = torch.randn(tokens, HIDDEN).bfloat16(), torch.rand(HIDDEN).bfloat16()
        residuals = [residual_TH.clone() for _ in ranks] if norm else []
        outs = call(compiled, ranks, partials, residuals, weight_H)
        if norm:
            check_normed(outs, residuals, partials, residual_TH, weight_H)
            continue
        wanted = sum(partial.float() for partial in partials).bfloat16()
        assert all(torch.equal(out, wanted) for out in outs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_routes_of_experts_here_are_summed_before(compiled, dtype):
    seeded()
    ranks, routes, experts = ranks_of(2), 3, 4
    for tokens in (1, 5, 2):
        weight_H, residual_TH = torch.rand(HIDDEN).bfloat16(), torch.randn(tokens, HIDDEN).bfloat16()
        indices = [torch.randint(-experts, 2 * experts, (tokens * routes,), dtype=torch.int32) for _ in ranks]
        rows = [torch.randn(tokens * routes, HIDDEN).to(dtype) for _ in ranks]
        for one, index in zip(rows, indices, strict=True):
            one[(index < 0) | (index >= experts)] = torch.nan  # whatever memory held
        partials = [sum_routes(*one, residual_TH, experts) for one in zip(rows, indices, strict=True)]
        residuals = [residual_TH.clone() for _ in ranks]
        outs = call(compiled, ranks, rows, residuals, weight_H, indices, experts)
        check_normed(outs, residuals, partials, residual_TH, weight_H)


def test_the_number_of_an_empty_slot_is_passed_over(compiled):
    ranks = ranks_of(2, first_call=-1)
    call(compiled, ranks, [torch.ones(1, HIDDEN).bfloat16()] * 2, [], torch.ones(HIDDEN).bfloat16())
    for number, rank in enumerate(ranks):
        assert rank.calls_P.tolist() == [2, -1, -1], "even after odd: the slots alternate"
        assert (rank.slots[0, 1 - number, 0].view(-1, 4)[:, 1::2] == 2).all()


def test_what_it_does_not_take_is_refused():
    reducer = PushReducer(torch.zeros(2, dtype=torch.int64), torch.zeros(1, dtype=torch.int32), 0, 4, 16)
    with pytest.raises(KernelError, match=r"5 × 16 .* at most 4 × 16"):
        reducer.reduce(torch.zeros(5, 16, dtype=torch.bfloat16))
    with pytest.raises(KernelError, match="float32"):
        reducer.reduce(torch.zeros(1, 16))
    rows = torch.zeros(1, 16, dtype=torch.bfloat16)
    with pytest.raises(KernelError, match=r"torch.float32 \(16,\).*The fused one takes any"):
        reducer.reduce_add_norm(rows, Norm(rows, torch.ones(16), EPSILON))
    index_P = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(KernelError, match=r"index of int32, and was given .*torch.int64 \(2,\)"):
        reducer.reduce_add_norm(Routes(rows.repeat(2, 1), index_P, 3), Norm(rows, rows[0], EPSILON))


@pytest.mark.parametrize("world", [2, 4, 8])
def test_it_does_not_spill_and_values_are_written_with_their_number(tmp_path, world):
    if problem := cuda_program.missing():
        pytest.skip(problem)
    kinds = ((0, torch.bfloat16), (4, torch.float32), (4, torch.bfloat16))
    names = [name_of(world, 2880, *kind) for kind in kinds]
    code, _ = cuda_program.compile_cubin(cuda_program.source_of(*FILES), names, (9, 0))
    made = tmp_path / "push.cubin"
    made.write_bytes(code)
    for usage in resources(made).values():
        assert usage["STACK"] == usage["LOCAL"] == 0
        assert usage["REG"] <= 80  # two blocks on a multiprocessor, see MOST_BLOCKS
    # sixteen bytes in one piece, for the whole system to see
    text = disassembly(made)
    assert text.count("STG.E.128.STRONG.SYS") >= len(kinds) * (world - 1)
    assert text.count("LDG.E.128.STRONG.SYS") >= len(kinds) * (world - 1)
