from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

import torch
from interpreted import interpreted
from kernel_compile import compile_kernel

from gptoss_dist.kernels import router_reference, router_triton

FEW = router_triton.FEW_TOKENS


def whole_numbers(*shape):
    """Small integers: every order of summation gives the same logits, and many are equal."""
    return torch.randint(-2, 3, shape).float()


@interpreted
def test_the_kernels_choose_what_the_reference_chooses_ties_included():
    for dtype in (torch.float32, torch.float16):
        for tokens in (0, 1, 3, FEW, FEW + 1, FEW + 12):  # again and again: the counter must come back to zero
            for experts, hidden, top_k in ((5, 24, 2), (16, 32, 4), (4, 8, 4)):
                normed_TH = whole_numbers(tokens, hidden + 8).to(dtype)[:, :hidden]
                weight_EH, bias_E = whole_numbers(experts, hidden).to(dtype), whole_numbers(experts).to(dtype)
                index_TK, weight_TK = router_triton.route(normed_TH, weight_EH, bias_E, top_k)
                wanted_TK, wanted_weight_TK = router_reference.route(normed_TH, weight_EH, bias_E, top_k)
                assert torch.equal(index_TK, wanted_TK)
                torch.testing.assert_close(weight_TK, wanted_weight_TK)


@interpreted
def test_zeros_of_both_signs_and_the_largest_numbers_are_ordered_as_numbers():
    logits_TE = torch.tensor([[-0.0, 0.0, -1.0, -0.0, 0.0], [-1e38, -torch.inf, -3e38, 1e-30, -1e-30]])
    for rows in (1, 2, 9):
        index_TK, weight_TK = router_triton.choose(logits_TE.repeat(5, 1)[:rows], 4)
        assert index_TK.tolist() == ([[0, 1, 3, 4], [3, 4, 0, 2]] * 5)[:rows]
        assert (weight_TK[0] == 0.25).all()


@interpreted
def test_a_logit_that_is_no_number_still_gives_experts_that_exist():
    for tokens in (2, FEW + 1):
        normed_TH = torch.full((tokens, 8), torch.nan)
        index_TK, _ = router_triton.route(normed_TH, torch.randn(6, 8), torch.randn(6), 4)
        assert ((index_TK >= 0) & (index_TK < 6)).all()


@pytest.mark.parametrize("capability", [80, 90])
def test_nothing_spills_at_the_models_width(tmp_path, capability):
    pointers = ("normed", "router", "bias", "logits")
    signature = dict.fromkeys(pointers, "*bf16") | {"index": "*i32", "weight": "*fp32", "counter": "*i32"}
    made = compile_kernel(
        router_triton._route_few_kernel,
        signature | {"tokens": "i32", "normed_stride": "i32", "router_stride": "i32"},
        {
            "HIDDEN": 2880,
            "ROWS": FEW,
            "BLOCK_HIDDEN": 4096,
            "EXPERTS_A_PROGRAM": router_triton._EXPERTS_A_PROGRAM,
            **router_triton._blocks(128, 4),
        },
        tmp_path,
        capability,
        aligned=(*pointers, "normed_stride", "router_stride"),
        num_warps=4,
    )
    assert made.spilled_bytes == 0
    assert "ld.global.v4.b32" in made.ptx
    lines = [line.split("//")[0].strip() for line in made.ptx.splitlines()]
    arrival = next(place for place, line in enumerate(lines) if "atom.global.gpu.acq_rel.add" in line)
    stored = max(place for place, line in enumerate(lines[:arrival]) if "st.global" in line)
    assert any(line.startswith("bar.sync") for line in lines[stored:arrival])


def test_choosing_alone_does_not_spill(tmp_path):
    signature = {"logits": "*bf16", "index": "*i32", "weight": "*fp32", "tokens": "i32"}
    constants = {"ROWS": router_triton._ROWS, **router_triton._blocks(128, 4)}
    made = compile_kernel(router_triton._choose_kernel, signature, constants, tmp_path, num_warps=4)
    assert made.spilled_bytes == 0
