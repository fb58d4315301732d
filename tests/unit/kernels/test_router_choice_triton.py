from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

import torch
from interpreted import interpreted
from kernel_compile import compile_kernel

from gptoss_dist.kernels import router_choice_triton


@interpreted
def test_zeros_of_both_signs_and_the_largest_numbers_are_ordered_as_numbers():
    logits_TE = torch.tensor([[-0.0, 0.0, -1.0, -0.0, 0.0], [-1e38, -torch.inf, -3e38, 1e-30, -1e-30]])
    for rows in (1, 2, 9):
        index_TK, weight_TK = router_choice_triton.choose(logits_TE.repeat(5, 1)[:rows], 4)
        assert index_TK.tolist() == ([[0, 1, 3, 4], [3, 4, 0, 2]] * 5)[:rows]
        assert (weight_TK[0] == 0.25).all()
    for dtype, least in ((torch.float16, 6e-8), (torch.bfloat16, 1e-30)):
        logits_TE = torch.tensor([[-0.0, 0.0, -torch.inf, -least, least, torch.nan, -3e4, -3.01e4]]).to(dtype)
        index_TK, weight_TK = router_choice_triton.choose(logits_TE, 8)
        assert index_TK.tolist() == [[4, 0, 1, 3, 6, 7, 2, 5]]
        assert (weight_TK[0, 4:] == 0).all()


def test_choosing_alone_does_not_spill():
    signature = {"logits": "*fp32", "bias": "*bf16", "index": "*i32", "weight": "*fp32", "tokens": "i32"}
    constants = {"ROWS": router_choice_triton._ROWS, **router_choice_triton.choice_constants(128, 4)}
    constants |= {"PARTS": 8, "HAS_BIAS": True, "DEPENDENT": False}
    made = compile_kernel(router_choice_triton._choose_kernel, signature, constants, num_warps=4)
    assert made.spilled_bytes == 0
