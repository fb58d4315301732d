from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

import torch
from interpreted import interpreted

from gptoss_dist.kernels import projection_reference, router_reference
from gptoss_dist.kernels.attention_end_triton import end_attention


@interpreted
def test_it_does_what_projection_norm_and_router_do():
    for tokens in (0, 1, 3, 12, 17):
        out_TC, weight_HC, bias_H = torch.randn(tokens, 48), torch.randn(40, 48), torch.randn(40)
        residual_TH, norm_H = torch.randn(tokens, 40), torch.randn(40)
        router = (torch.randn(6, 40), torch.randn(6), 2)
        for bias in (None, bias_H):
            wanted_TH = projection_reference.project(out_TC, weight_HC, bias, residual_TH.clone())
            wanted = router_reference.norm_route(wanted_TH, norm_H, 1e-5, *router)
            found_TH = residual_TH.clone()
            found = end_attention(out_TC, weight_HC, bias, found_TH, norm_H, 1e-5, *router)
            torch.testing.assert_close(found_TH, wanted_TH, rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=1e-4)
            assert torch.equal(found[1], wanted[1])
            torch.testing.assert_close(found[2], wanted[2], rtol=1e-4, atol=1e-4)
