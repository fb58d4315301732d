from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

import torch
from interpreted import interpreted
from kernel_compile import compile_kernel

from gptoss_dist.kernels import projection_reference, projection_triton


@interpreted
def test_the_kernels_compute_what_float64_computes():
    for dtype in (torch.float32, torch.float16):
        for tokens in (0, 1, 2, 16, 17):
            for rows, columns in ((5, 24), (40, 200)):
                x_TC = torch.randn(tokens, columns + 8).to(dtype)[:, :columns]
                weight_OC = torch.randn(rows, columns).to(dtype)
                for bias_O in (None, torch.randn(rows).to(dtype)):
                    for residual_TO in (None, torch.randn(tokens, rows).to(dtype)):
                        operands = (x_TC, weight_OC, bias_O, residual_TO)
                        wide = [None if part is None else part.double() for part in operands]
                        wanted = projection_reference.project(*wide)
                        found = projection_triton.project(*operands)
                        assert residual_TO is None or found is residual_TO
                        assert found.dtype == dtype
                        bound = 4 * torch.finfo(dtype).eps
                        torch.testing.assert_close(found.double(), wanted, rtol=bound, atol=4 * bound * columns**0.5)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("rows", "columns"), [(5120, 2880), (2880, 4096)], ids=["qkv", "out"])
@pytest.mark.parametrize("tokens", ["one", "few"])
def test_nothing_spills_at_the_models_width(tmp_path, capability, rows, columns, tokens):
    pointers = ("x", "weight", "bias", "out")
    numbers = ("rows", "weight_stride") + (("tokens", "x_stride", "out_stride") if tokens == "few" else ())
    suffix = tokens.upper()
    made = compile_kernel(
        getattr(projection_triton, f"_project_{tokens}_kernel"),
        dict.fromkeys(pointers, "*bf16") | dict.fromkeys(numbers, "i32"),
        {
            "COLUMNS": columns,
            "HAS_BIAS": True,
            "HAS_RESIDUAL": tokens == "few",
            "BLOCK_ROWS": getattr(projection_triton, f"_ROWS_{suffix}"),
            "BLOCK_COLUMNS": getattr(projection_triton, f"_COLUMNS_{suffix}"),
        },
        tmp_path,
        capability,
        aligned=(*pointers, *(name for name in numbers if name != "tokens")),
        num_warps=4,
        num_stages=4 if tokens == "few" else 3,
    )
    assert made.spilled_bytes == 0
    assert "v4.b32" in made.ptx or "cp.async.cg.shared.global" in made.ptx
