from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

import torch
from interpreted import interpreted
from kernel_compile import compile_kernel

from gptoss_dist.kernels import norm_reference, norm_triton


def close(found, wanted):
    ulp = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found, wanted, rtol=2 * ulp, atol=1e-6)
    if found.dtype == torch.float16 and found.numel():
        assert (found == wanted).float().mean() > 0.97  # the norm is that of the rounded sum


@interpreted
def test_the_kernel_computes_what_the_reference_computes():
    for dtype in (torch.float32, torch.float16):
        for tokens, hidden in ((1, 96), (3, 128), (0, 8)):
            storage = torch.randn(tokens, hidden + 8).to(dtype)
            residual_TH, weight_H = storage[:, :hidden], torch.randn(hidden)
            for update_TH in (None, torch.randn(tokens, hidden), torch.randn(tokens, hidden).to(dtype)):
                wanted_residual = residual_TH.clone()
                wanted = norm_reference.add_norm(wanted_residual, update_TH, weight_H, 1e-5)
                beyond = storage[:, hidden:].clone()
                found = norm_triton.add_norm(residual_TH, update_TH, weight_H, 1e-5)
                assert torch.equal(residual_TH, wanted_residual)
                assert torch.equal(storage[:, hidden:], beyond)
                close(found, wanted)


@pytest.mark.parametrize("capability", [80, 90])
def test_nothing_spills_at_the_models_width(tmp_path, capability):
    signature = {"residual": "*bf16", "update": "*bf16", "weight": "*fp32", "normed": "*bf16"}
    signature |= {"residual_stride": "i32", "update_stride": "i32", "epsilon": "fp32"}
    made = compile_kernel(
        norm_triton._add_norm_kernel,
        signature,
        {"HIDDEN": 2880, "BLOCK": 4096, "HAS_UPDATE": True},
        tmp_path,
        capability,
        aligned=("residual", "update", "weight", "normed", "residual_stride", "update_stride"),
        num_warps=norm_triton._WARPS,
    )
    assert made.spilled_bytes == 0
    assert "ld.global.v4.b32" in made.ptx
