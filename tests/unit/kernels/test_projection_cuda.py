"""The CUDA projections of one token: their own code compiled for the CPU (`cuda/host.h`), against the references."""

from __future__ import annotations

import ctypes

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

import torch
from cuda_on_cpu import compile_for_cpu, disassembly, pointer, resources

from gptoss_dist.kernels import cuda_program, projection_cuda, projection_reference, rotary_reference
from gptoss_dist.kernels.turning import Heads, Turning

COLUMNS, HALF, QUERY_HEADS, KV_HEADS, PAGE_SIZE = 328, 16, 3, 2, 4
SHAPE = QUERY_HEADS, KV_HEADS, 2 * HALF
ROUNDED = 2**-7
"""Two units in the last place of bfloat16: sums in another order are rounded to a neighbour now and then."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> ctypes.CDLL:
    return compile_for_cpu("projection_stream_host.cpp", tmp_path_factory.mktemp("host"))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_rows_times_one_token(compiled, bias, residual):
    rows, warps = 10, 4  # the last block has warps without a row
    weight_OC, x_TC = (torch.randn(rows, COLUMNS) / 18).bfloat16(), torch.randn(1, COLUMNS).bfloat16()
    bias_O, start_TO = torch.randn(rows).bfloat16(), torch.randn(1, rows).bfloat16()
    wanted = projection_reference.project(
        x_TC, weight_OC, bias_O if bias else None, start_TO.clone() if residual else None
    )
    out_TO = start_TO.clone() if residual else torch.full_like(start_TO, torch.nan)
    compiled.project(warps, 3, *map(pointer, (weight_OC, bias_O, x_TC, out_TO)), rows, int(bias), int(residual))
    torch.testing.assert_close(out_TO, wanted, rtol=ROUNDED, atol=ROUNDED)


@pytest.mark.parametrize("slot", [-1, 9])
@pytest.mark.parametrize("bias", [False, True])
def test_queries_are_turned_and_the_cache_is_written(compiled, slot, bias):
    rows = (QUERY_HEADS + 2 * KV_HEADS) * 2 * HALF
    weight_CH, x_TH = (torch.randn(rows, COLUMNS) / 18).bfloat16(), torch.randn(1, COLUMNS).bfloat16()
    bias_C, slot_T = torch.randn(rows).bfloat16(), torch.tensor([slot])
    frequency = 150000.0 ** -(torch.arange(HALF) / HALF)
    turns = rotary_reference.rotary_angles(torch.tensor([5000]), frequency, 1.3466, torch.bfloat16)
    qkv_TC = projection_reference.project(x_TH, weight_CH, bias_C if bias else None)
    wanted_cache, found_cache = caches(), caches()
    wanted = rotary_reference.rotate_and_store(qkv_TC, Turning(*turns, slot_T, *wanted_cache, Heads(*SHAPE)))
    found = torch.full_like(wanted, torch.nan)
    strides = torch.tensor([*found_cache[0].stride()[:3], *found_cache[1].stride()[:3]], dtype=torch.int32)
    compiled.begin_attention(
        3, -(-rows // 6), *map(pointer, (weight_CH, bias_C, x_TH, *turns, slot_T, found, *found_cache, strides)),
        PAGE_SIZE, QUERY_HEADS, KV_HEADS, int(bias),
    )  # fmt: skip
    bound = {"rtol": 2 * ROUNDED, "atol": 2 * ROUNDED}
    torch.testing.assert_close(found, wanted, **bound)
    for found_part, wanted_part in zip(found_cache, wanted_cache, strict=True):
        assert bool(found_part.any()) == (slot >= 0)
        torch.testing.assert_close(found_part, wanted_part, **bound)


def caches() -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values with strides of their own."""
    pool = torch.zeros(3, 2, PAGE_SIZE, KV_HEADS, 2 * HALF, dtype=torch.bfloat16)
    return pool[:, 1], torch.zeros(PAGE_SIZE, 3, KV_HEADS, 2 * HALF, dtype=torch.bfloat16).transpose(0, 1)


def test_no_instance_spills_and_weights_are_asked_for_before_the_wait(tmp_path):
    """As Hopper would get them, for whole and halved attention."""
    if problem := cuda_program.missing():
        pytest.skip(problem)

    names = ["project_one<4096>", "project_one<2048>", "begin_attention_one<2880, 32>"]
    source = cuda_program.source_of(*projection_cuda.FILES)
    code, found = cuda_program.compile_cubin(source, names, (9, 0))
    made = tmp_path / "projection.cubin"
    made.write_bytes(code)
    usages = resources(made)
    assert set(usages) == {name.decode() for name in found}
    for usage in usages.values():
        assert usage["STACK"] == usage["LOCAL"] == 0
        assert usage["REG"] <= 96  # two blocks of ten warps and what runs before them
    for text in disassembly(made).split(".text.")[1:]:
        if "ACQBULK" in text:
            before, after = text.split("ACQBULK")
            assert "LDGSTS.E.BYPASS.LTC128B.128" in before
            assert "LDGSTS" not in after
            assert "ST.E" not in before
