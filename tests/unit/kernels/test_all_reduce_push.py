"""The all-reduce that pushes: its own code compiled for the CPU (`cuda/host.h`), all ranks at once."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass

import pytest
import torch
from cuda_on_cpu import compile_for_cpu, disassembly, resources

from gptoss_dist.errors import KernelError
from gptoss_dist.kernels import all_reduce_push, cuda_program
from gptoss_dist.kernels.all_reduce_push import FILES, SLOTS, PushExchange, name_of
from gptoss_dist.kernels.all_reduce_reference import LocalReducer

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


def call(compiled, ranks, partials, bias_H, residuals, weight_H):
    """One call on all ranks; what each returns. Without residuals: the sum alone."""
    tokens = len(partials[0])
    outs = [torch.full_like(one, torch.nan) for one in partials]
    pointers = (ctypes.c_void_p * (5 * len(ranks)))()
    for number, rank in enumerate(ranks):
        residual = residuals[number] if residuals else partials[number]
        tensors = (partials[number], residual, outs[number], rank.addresses_G, rank.calls_P)
        pointers[5 * number : 5 * number + 5] = [one.data_ptr() for one in tensors]
    done = compiled.run(
        len(ranks), pointers, *(ctypes.c_void_p((one if one is not None else partials[0]).data_ptr())
        for one in (bias_H, weight_H)), min(tokens, BLOCKS), tokens, MAX_TOKENS, int(bias_H is not None),
        int(bool(residuals)), ctypes.c_float(EPSILON),
    )  # fmt: skip
    assert done
    return outs


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("first_call", [0, 2**31 - 2, -2], ids=["from the first", "from the middle", "past the last"])
def test_every_rank_gets_the_same_sum_and_its_norm(compiled, world, first_call):
    seed = time.time_ns() % 2**31
    print(f"seed {seed}")
    torch.manual_seed(seed)
    ranks = ranks_of(world, first_call)
    for tokens, add_bias, norm in (
        (1, True, True),
        (5, False, True),
        (2, False, False),
        (5, True, True),
        (1, False, True),
    ):
        partials = [torch.randn(tokens, HIDDEN).bfloat16() for _ in ranks]
        bias_H, weight_H = torch.randn(HIDDEN).bfloat16(), torch.rand(HIDDEN).bfloat16()
        residual_TH = torch.randn(tokens, HIDDEN).bfloat16()
        total_TH = torch.zeros(tokens, HIDDEN)
        for partial in partials:
            total_TH += partial.float()
        residuals = [residual_TH.clone() for _ in ranks] if norm else []
        outs = call(compiled, ranks, partials, bias_H if add_bias else None, residuals, weight_H)
        wanted = total_TH.bfloat16()
        if norm:
            wanted = LocalReducer().reduce_add_norm(
                total_TH, bias_H if add_bias else None, residual_TH, weight_H, EPSILON
            )
            assert all(torch.equal(one, residual_TH) for one in residuals)
        for out in outs:
            assert torch.equal(out, outs[0])
            torch.testing.assert_close(out, wanted, rtol=2 * torch.finfo(torch.bfloat16).eps, atol=1e-6)


def test_the_number_of_an_empty_slot_is_passed_over(compiled):
    ranks = ranks_of(2, first_call=-1)
    call(compiled, ranks, [torch.ones(1, HIDDEN).bfloat16()] * 2, None, [], None)
    for number, rank in enumerate(ranks):
        assert rank.calls_P.tolist() == [2, -1, -1], "even after odd: the slots alternate"
        assert (rank.slots[0, 1 - number, 0].view(-1, 4)[:, 1::2] == 2).all()


def test_what_it_does_not_take_is_refused():
    exchange = PushExchange(torch.zeros(2, dtype=torch.int64), torch.zeros(1, dtype=torch.int32), 0, 4, 16)
    with pytest.raises(KernelError, match=r"5 × 16 .* at most 4 × 16"):
        all_reduce_push.reduce(exchange, torch.zeros(5, 16, dtype=torch.bfloat16))
    with pytest.raises(KernelError, match="float32"):
        all_reduce_push.reduce(exchange, torch.zeros(1, 16))
    rows = torch.zeros(1, 16, dtype=torch.bfloat16)
    with pytest.raises(KernelError, match=r"torch.float32 \(16,\).*The fused one takes any"):
        all_reduce_push.reduce_add_norm(exchange, rows, None, rows, torch.ones(16), EPSILON)


@pytest.mark.parametrize("world", [2, 4, 8])
def test_it_does_not_spill_and_values_are_written_with_their_number(tmp_path, world):
    if problem := cuda_program.missing():
        pytest.skip(problem)
    code, _ = cuda_program.compile_cubin(cuda_program.source_of(*FILES), [name_of(world, 2880)], (9, 0))
    made = tmp_path / "push.cubin"
    made.write_bytes(code)
    (usage,) = resources(made).values()
    assert usage["STACK"] == usage["LOCAL"] == 0
    # sixteen bytes in one piece, for the whole system to see
    text = disassembly(made)
    assert text.count("STG.E.128.STRONG.SYS") >= world - 1
    assert text.count("LDG.E.128.STRONG.SYS") >= world - 1
