from __future__ import annotations

import pytest
import torch
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm

from gptoss_dist.kernels.norm_reference import add_norm, add_routes_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, None])
def test_without_an_update_it_is_the_models_own_norm(dtype, weight_dtype):
    module = GptOssRMSNorm(96, eps=1e-5)
    module.weight.data.normal_()
    module.to(weight_dtype or dtype)
    residual_TH = torch.randn(5, 96).to(dtype)
    before = residual_TH.clone()
    with torch.no_grad():
        assert torch.equal(add_norm(residual_TH, None, module.weight, 1e-5), module(before))
    assert torch.equal(residual_TH, before)


def test_the_residual_takes_the_update_in_place_rounded_once():
    residual_TH, update_TH = torch.randn(4, 32).bfloat16(), torch.randn(4, 32)
    wanted = (residual_TH.double() + update_TH.double()).float().bfloat16()
    normed = add_norm(residual_TH, update_TH, torch.ones(32), 1e-6)
    assert torch.equal(residual_TH, wanted)
    assert torch.equal(normed, add_norm(wanted, None, torch.ones(32), 1e-6))


def test_routes_are_summed_and_added_in_float32_and_rounded_once():
    one_TH, rows_PH = torch.ones(1, 4).bfloat16(), torch.tensor([[2**-8], [2**-18]]).expand(2, 4)
    twice_TH = one_TH.clone()
    add_norm(twice_TH, rows_PH.sum(dim=0, keepdim=True).bfloat16(), torch.ones(4), 0.0)
    assert (twice_TH == 1).all()
    add_routes_norm(one_TH, rows_PH, torch.tensor([0, 1]), 2, torch.ones(4), 0.0)
    assert (one_TH == 1 + 2**-7).all()
