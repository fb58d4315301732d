from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

import torch
from interpreted import interpreted
from kernel_compile import compile_kernel

from gptoss_dist.kernels import embedding_reference, embedding_triton


@interpreted
def test_the_kernel_copies_the_rows_that_the_reference_copies():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        weight_VH = torch.randn(7, 48).to(dtype)[:, :40]
        for first, id_dtype in ((0, torch.int64), (5, torch.int32)):
            ids_T = torch.randint(-1, 14, (9,), dtype=id_dtype)
            found = embedding_triton.embed(ids_T, weight_VH, first)
            assert torch.equal(found, embedding_reference.embed(ids_T, weight_VH, first))
            assert torch.equal(embedding_triton.embed(ids_T[::2], weight_VH, first), found[::2])


@pytest.mark.parametrize("capability", [80, 90])
def test_nothing_spills_at_the_models_width(capability):
    signature = {"ids": "*i64", "weight": "*bf16", "out": "*bf16", "id_stride": "i32", "weight_stride": "i32"}
    made = compile_kernel(
        embedding_triton._embed_kernel,
        signature | {"first": "i32", "rows": "i32"},
        {"HIDDEN": 2880, "BLOCK": 4096},
        capability,
        aligned=("weight", "out", "weight_stride"),
    )
    assert made.spilled_bytes == 0
