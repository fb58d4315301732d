from __future__ import annotations

import pytest
import torch
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter

from gptoss_dist.kernels.router_reference import choose, route


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_chooses_as_the_model_does_where_no_two_logits_are_equal(dtype):
    module = GptOssTopKRouter(GptOssConfig(hidden_size=64, num_local_experts=32, num_experts_per_tok=4)).to(dtype)
    module.weight.data.normal_()
    module.bias.data.normal_()
    normed_TH = torch.randn(40, 64).to(dtype)
    with torch.no_grad():
        logits_TE, scores_TK, wanted_TK = module(normed_TH)
    found_TK, weight_TK = route(normed_TH, module.weight, module.bias, 4)
    distinct_T = torch.tensor([len(row.unique()) == len(row) for row in logits_TE])
    assert distinct_T.any()
    assert (found_TK.dtype, weight_TK.dtype) == (torch.int32, torch.float32)
    assert torch.equal(found_TK[distinct_T].long(), wanted_TK[distinct_T])
    torch.testing.assert_close(weight_TK, scores_TK.float(), rtol=0, atol=torch.finfo(dtype).eps)


def test_among_equal_logits_the_lowest_expert_comes_first():
    logits_TE = torch.tensor([[1.0, 3.0, 3.0, 0.0, 3.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    index_TK, weight_TK = choose(logits_TE, 3)
    assert index_TK.tolist() == [[1, 2, 4], [0, 1, 2]]
    torch.testing.assert_close(weight_TK, torch.full((2, 3), 1 / 3))
