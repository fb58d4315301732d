"""The prefill kernel's own code in Triton's interpreter against the reference in float64; and compiled for GPUs."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is published for Linux only")

from attention_cases import PREFILL, run_interpreted
from kernel_compile import compile_kernel
from wgmma_operands import overwritten_operands

from gptoss_dist.kernels import attention_prefill
from gptoss_dist.kernels.attention_prefill import FULL, SLIDING, WIDE, prefill_attention

BOUND = {"float32": 1e-5, "float16": 1.5e-3}
"""For each head: float16 rounds weights and results, 2^-11 each, and half of that or less is lost on average."""
REAL = {"GROUP": 8, "GROUP_PADDED": 8, "HEAD_SIZE": 64, "SEQUENCES_PADDED": 64}
TYPES = {
    **dict.fromkeys(("query", "key", "value", "sinks", "out"), "*bf16"),
    **dict.fromkeys(("table", "first", "count", "start"), "*i32"),
    **dict.fromkeys(("sequences", "table_stride", "page_stride", "row_stride", "head_stride"), "i32"),
    "scale": "fp32",
}
ALIGNED = ("query", "key", "value", "table", "out", "page_stride", "row_stride", "head_stride")


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    return run_interpreted("prefill")


@pytest.mark.parametrize("case", PREFILL, ids=lambda case: case.name)
def test_the_kernel_computes_what_the_reference_computes(case, errors):
    assert errors[case.name] < BOUND[case.dtype]


def compiled(setting, window, page_size, capability, types=TYPES):
    constants = REAL | {
        "PAGE_SIZE": page_size,
        "QUERIES": setting.queries,
        "BLOCK": setting.block,
        "WINDOW": window,
    }
    kernel, options = attention_prefill._prefill_kernel, {"num_warps": setting.warps, "num_stages": setting.stages}
    return compile_kernel(kernel, types, constants, capability, ALIGNED, **options)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize(("setting", "window"), [(FULL, 0), (SLIDING, 128)], ids=["full", "sliding"])
def test_compiled_for_real_shapes_nothing_spills_and_tensor_cores_are_used(
    setting, window, page_size, capability, tmp_path
):
    made = compiled(setting, window, page_size, capability)
    assert made.spilled_bytes == 0
    assert ("wgmma.mma_async" if capability == 90 else "mma.sync") in made.ptx
    assert "cp.async.ca" not in made.ptx, "16 bytes at a time, and tables are not copied at all"
    assert overwritten_operands(made.disassembly()) == []


def test_float32_compiles_without_spills():
    types = TYPES | dict.fromkeys(("query", "key", "value", "sinks", "out"), "*fp32")
    assert compiled(WIDE, 0, 16, 90, types).spilled_bytes == 0


@pytest.mark.parametrize(("counts", "tokens"), [((), 0), ((0, 0), 3)])
def test_no_tokens_need_no_launch(counts, tokens):
    cache = torch.zeros(2, 3, 16, 2, 64)
    table, places = torch.zeros(len(counts), 4, dtype=torch.int32), torch.zeros(len(counts), dtype=torch.int32)
    query = torch.zeros(tokens, 16, 64)
    found = prefill_attention(query, *cache, table, places, places, places, torch.zeros(16), None, longest=0)
    assert found.shape == query.shape
