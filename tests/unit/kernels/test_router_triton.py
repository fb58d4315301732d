from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

import torch
from interpreted import interpreted
from kernel_compile import compile_kernel

from gptoss_dist.kernels import router_reference, router_triton
from gptoss_dist.kernels.router_choice_triton import choice_constants

FEW, SOME = router_triton.FEW_TOKENS, router_triton.SOME_TOKENS


def whole_numbers(*shape):
    """Small integers: every order of summation gives the same logits, and many are equal."""
    return torch.randint(-2, 3, shape).float()


@interpreted
def test_the_kernels_choose_what_the_reference_chooses_ties_included():
    for dtype in (torch.float32, torch.float16):
        # Again and again: the counter must come back to zero.
        for tokens in (0, 1, 3, FEW, FEW + 1, FEW + 12, SOME + 1):
            for experts, hidden, top_k in ((5, 24, 2), (16, 32, 4), (20, 128, 4), (4, 8, 4)):
                normed_TH = whole_numbers(tokens, hidden + 8).to(dtype)[:, :hidden]
                weight_EH, bias_E = whole_numbers(experts, hidden).to(dtype), whole_numbers(experts).to(dtype)
                index_TK, weight_TK = router_triton.route(normed_TH, weight_EH, bias_E, top_k)
                wanted_TK, wanted_weight_TK = router_reference.route(normed_TH, weight_EH, bias_E, top_k)
                assert torch.equal(index_TK, wanted_TK)
                torch.testing.assert_close(weight_TK, wanted_weight_TK)


@interpreted
def test_a_logit_that_is_no_number_still_gives_experts_that_exist():
    for tokens in (2, FEW + 1, SOME + 1):
        normed_TH = torch.full((tokens, 8), torch.nan)
        index_TK, _ = router_triton.route(normed_TH, torch.randn(6, 8), torch.randn(6), 4)
        assert ((index_TK >= 0) & (index_TK < 6)).all()


@interpreted
def test_the_norm_and_the_choice_together():
    for dtype in (torch.float32, torch.float16):
        for tokens in (0, 1, 3, FEW + 1):
            residual_TH = torch.randn(tokens, 40).to(dtype)[:, :32]
            norm_H, weight_EH, bias_E = (torch.randn(*shape).to(dtype) for shape in ((32,), (6, 32), (6,)))
            kept_TH = residual_TH.clone()
            found = router_triton.norm_route(residual_TH, norm_H, 1e-5, weight_EH, bias_E, 2)
            wanted = router_reference.norm_route(residual_TH, norm_H, 1e-5, weight_EH, bias_E, 2)
            assert torch.equal(residual_TH, kept_TH)
            torch.testing.assert_close(found[0], wanted[0], rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
            if dtype == torch.float32:
                assert torch.equal(found[1], wanted[1])
                torch.testing.assert_close(found[2], wanted[2])


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("capability", [80, 90])
def test_nothing_spills_at_the_models_width(capability, normed):
    pointers = ("x", "router", "bias", "norm", "normed", "logits")
    signature = dict.fromkeys(pointers, "*bf16") | {"index": "*i32", "weight": "*fp32", "counter": "*i32"}
    made = compile_kernel(
        router_triton._route_few_kernel,
        signature | {"tokens": "i32", "x_stride": "i32", "router_stride": "i32", "epsilon": "fp32"},
        {
            "HAS_NORM": normed,
            "DEPENDENT": capability >= 90,
            "HIDDEN": 2880,
            "ROWS": FEW,
            "BLOCK_HIDDEN": 4096,
            "EXPERTS_A_PROGRAM": router_triton._EXPERTS_A_PROGRAM,
            **choice_constants(128, 4),
        },
        capability,
        aligned=(*pointers, "x_stride", "router_stride"),
        num_warps=4,
    )
    assert made.spilled_bytes == 0
    assert "ld.global.v4.b32" in made.ptx
    lines = [line.split("//")[0].strip() for line in made.ptx.splitlines()]
    arrival = next(place for place, line in enumerate(lines) if "atom.global.gpu.acq_rel.add" in line)
    stored = max(place for place, line in enumerate(lines[:arrival]) if "st.global" in line)
    assert any(line.startswith("bar.sync") for line in lines[stored:arrival])


@pytest.mark.parametrize("tokens", [16, 64])
def test_parts_of_columns_compile_as_they_should(tokens):
    signature = {"normed": "*bf16", "router": "*bf16", "part": "*fp32"}
    signature |= dict.fromkeys(("tokens", "normed_stride", "router_stride"), "i32")
    constants = {"EXPERTS": 128, "COLUMNS": 360, "TOKENS": tokens, "DEPENDENT": True, **router_triton._PART_TILE}
    aligned = ("normed", "router", "part", "normed_stride", "router_stride")
    made = compile_kernel(router_triton._part_kernel, signature, constants, 90, aligned, num_warps=4, num_stages=3)
    assert made.spilled_bytes == 0
    assert "mma.sync" in made.ptx
    assert "cp.async.cg" in made.ptx
