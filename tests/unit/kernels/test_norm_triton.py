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


@interpreted
def test_routes_are_added_in_their_order_before_the_norm():
    for dtype in (torch.float32, torch.float16):
        for tokens, top_k, hidden in ((1, 4, 96), (3, 2, 40), (0, 4, 8)):
            residual_TH, weight_H = torch.randn(tokens, hidden).to(dtype), torch.randn(hidden)
            rows_PH = torch.randn(tokens * top_k, hidden)
            index_P = torch.randint(0, 6, (tokens * top_k,), dtype=torch.int32)
            index_P[1::3], index_P[2::5] = -2, 6
            rows_PH[(index_P < 0) | (index_P > 5)] = torch.nan
            wanted_residual = residual_TH.clone()
            wanted = norm_reference.add_routes_norm(wanted_residual, rows_PH, index_P, 6, weight_H, 1e-5)
            found = norm_triton.add_routes_norm(residual_TH, rows_PH, index_P, 6, weight_H, 1e-5)
            assert torch.equal(residual_TH, wanted_residual)
            close(found, wanted)


def test_the_sum_of_routes_is_that_of_the_rows_of_one_rank():
    residual_TH, weight_H, rows_PH = torch.randn(2, 8), torch.ones(8), torch.randn(6, 8)
    wanted_TH = residual_TH + torch.stack([rows_PH[0] + rows_PH[2], rows_PH[4]])
    index_P = torch.tensor([0, 9, 1, -1, 2, 3])
    normed_TH = norm_reference.add_routes_norm(residual_TH, rows_PH, index_P, 3, weight_H, 0.0)
    torch.testing.assert_close(residual_TH, wanted_TH)
    torch.testing.assert_close(normed_TH, torch.nn.functional.rms_norm(wanted_TH, (8,)))


def test_adding_routes_compiles_as_it_should():
    signature = {"residual": "*bf16", "rows": "*fp32", "index": "*i32", "weight": "*fp32", "normed": "*bf16"}
    signature |= {"residual_stride": "i32", "experts": "i32", "epsilon": "fp32"}
    made = compile_kernel(
        norm_triton._add_routes_norm_kernel,
        signature,
        {"TOP_K": 4, "HIDDEN": 2880, "BLOCK": 4096, "DEPENDENT": True},
        aligned=("residual", "rows", "index", "weight", "normed", "residual_stride"),
        num_warps=norm_triton._WARPS,
        launch_pdl=True,
    )
    assert made.spilled_bytes == 0
    assert "ld.global.v4.b32" in made.ptx
    before, after = made.ptx.split("griddepcontrol.wait")
    assert "st.global" not in before
    assert "st.global" in after


@pytest.mark.parametrize("capability", [80, 90])
def test_nothing_spills_at_the_models_width(capability):
    signature = {"residual": "*bf16", "update": "*bf16", "weight": "*fp32", "normed": "*bf16"}
    signature |= {"residual_stride": "i32", "update_stride": "i32", "epsilon": "fp32"}
    made = compile_kernel(
        norm_triton._add_norm_kernel,
        signature,
        {"HIDDEN": 2880, "BLOCK": 4096, "HAS_UPDATE": True, "DEPENDENT": False},
        capability,
        aligned=("residual", "update", "weight", "normed", "residual_stride", "update_stride"),
        num_warps=norm_triton._WARPS,
    )
    assert made.spilled_bytes == 0
    assert "ld.global.v4.b32" in made.ptx
