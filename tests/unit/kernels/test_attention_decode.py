"""The decode kernels' own code in Triton's interpreter against the reference in float64; and compiled for GPUs."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

pytest.importorskip("triton", reason="Triton is published for Linux only")

from attention_cases import DECODE, run_interpreted
from kernel_compile import compile_kernel

from gptoss_dist.kernels import attention_decode
from gptoss_dist.kernels.attention_decode import FULL, SLIDING, WIDE, DecodeSetting, decode_attention, split_count
from gptoss_dist.kernels.attention_splits import split_bytes

BOUND = {"float32": 1e-5, "float16": 1.5e-3}
"""For each head: float16 rounds weights and results, 2^-11 each, and half of that or less is lost on average."""
REAL = {"GROUP": 8, "ROWS": 16, "HEAD_SIZE": 64, "SEQUENCES_PADDED": 64}
TYPES = {
    **dict.fromkeys(("query", "key", "value", "sinks", "out"), "*bf16"),
    **dict.fromkeys(("table", "position"), "*i32"),
    **dict.fromkeys(("partial", "sums"), "*fp32"),
    **dict.fromkeys(("table_stride", "page_stride", "row_stride", "head_stride"), "i32"),
    **dict.fromkeys(("sequences", "slots"), "i32"),
    "scale": "fp32",
}
ALIGNED = ("query", "key", "value", "table", "out", "partial", "sums", "page_stride", "row_stride", "head_stride")


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    return run_interpreted("decode")


@pytest.mark.parametrize("case", DECODE, ids=lambda case: case.name)
def test_the_kernels_compute_what_the_reference_computes(case, errors):
    assert errors[case.name] < BOUND[case.dtype]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize(("setting", "window"), [(FULL, 0), (SLIDING, 128)], ids=["full", "sliding"])
def test_compiled_for_real_shapes_nothing_spills_and_pages_are_copied_by_16_bytes(
    setting, window, page_size, capability, tmp_path
):
    constants = REAL | {"PAGE_SIZE": page_size, "BLOCK": setting.block, "WINDOW": window, "DEPENDENT": capability >= 90}
    kernel, options = attention_decode._decode_kernel, {"num_warps": setting.warps, "num_stages": setting.stages}
    made = compile_kernel(kernel, TYPES, constants, tmp_path, capability, ALIGNED, **options)
    assert made.spilled_bytes == 0
    assert "cp.async.cg.shared.global [ %r" in made.ptx, "keys and values go to shared memory without registers"
    assert "cp.async.ca" not in made.ptx, "16 bytes at a time, and tables are not copied at all"
    if not window:
        assert setting.programs * made.shared_bytes <= 227 << 10, "all programs of a processor fit in it at once"


@pytest.mark.parametrize("window", [0, 128])
def test_float32_compiles_without_spills(window, tmp_path):
    types = TYPES | dict.fromkeys(("query", "key", "value", "sinks", "out"), "*fp32")
    constants = REAL | {"PAGE_SIZE": 16, "BLOCK": WIDE.block, "WINDOW": window, "DEPENDENT": False}
    options = {"num_warps": WIDE.warps, "num_stages": WIDE.stages}
    made = compile_kernel(attention_decode._decode_kernel, types, constants, tmp_path, 90, ALIGNED, **options)
    assert made.spilled_bytes == 0


@pytest.mark.parametrize("together", [1, 8])
@pytest.mark.parametrize("splits", [2, 256])
def test_the_joining_kernel_does_not_spill(splits, together, tmp_path):
    constants = {"HEAD_SIZE": 64, "BLOCK": 64, "SPLITS_PADDED": splits, "SEQUENCES_PADDED": 256, "TOGETHER": together}
    constants["DEPENDENT"] = True
    aligned, warps = ("partial", "sums", "out"), 8 if splits > 128 else 4
    made = compile_kernel(attention_decode._join_kernel, TYPES, constants, tmp_path, 90, aligned, num_warps=warps)
    assert made.spilled_bytes == 0


@pytest.mark.parametrize(
    ("sequences", "kv_heads", "positions", "slots"),
    [(1, 8, 131072, 66), (1, 8, 1024, 16), (1, 1, 131072, 256), (64, 8, 2048, 66), (0, 8, 2048, 1), (2, 600, 2048, 1)],
)
def test_splits_fill_132_processors_four_times_where_there_are_blocks_for_it(sequences, kv_heads, positions, slots):
    assert split_count(sequences, kv_heads, positions, 132, DecodeSetting()) == slots


@pytest.mark.parametrize("kv_heads", [1, 2, 8])
@pytest.mark.parametrize("sequences", [1, 64, 300])
def test_what_splits_leave_is_no_more_than_is_counted_for_it(sequences, kv_heads, monkeypatch):
    taken = []
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda *given, **kind: taken.append(empty(*given, **kind)) or taken[-1]
    )
    monkeypatch.setattr(attention_decode, "processor_count", lambda device: 132)
    for kernel in ("_decode_kernel", "_join_kernel"):  # launched by grid
        monkeypatch.setattr(attention_decode, kernel, defaultdict(lambda: lambda *given, **options: None))
    cache = torch.zeros(2, 1, 16, kv_heads, 64)
    tables = torch.zeros(sequences, 8192, dtype=torch.int32), torch.zeros(sequences, dtype=torch.int32)
    decode_attention(torch.zeros(sequences, 8 * kv_heads, 64), *cache, *tables, torch.zeros(8 * kv_heads), None)
    counted = split_bytes(sequences, 8 * kv_heads, 64)
    assert counted / 4 < sum(one.nbytes for one in taken) <= counted


def test_no_sequences_give_no_rows():
    cache = torch.zeros(2, 3, 16, 2, 64)
    table, position = torch.zeros(0, 4, dtype=torch.int32), torch.zeros(0, dtype=torch.int32)
    assert decode_attention(torch.zeros(0, 16, 64), *cache, table, position, torch.zeros(16), None).shape == (0, 16, 64)
