from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GptOssConfig

from gptoss_dist.kernels.experts_reference import experts_forward
from gptoss_dist.kernels.packed import PackedExperts
from gptoss_dist.model.experts import PackedGptOssExperts
from gptoss_dist.plan.layout import pieces
from gptoss_dist.shapes import SIZES, Shape


def experts(shape: Shape) -> PackedGptOssExperts:
    config = GptOssConfig(
        num_local_experts=shape.experts,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        swiglu_limit=5.0,
    )
    with torch.device("meta"):
        return PackedGptOssExperts(config)


@pytest.mark.parametrize("size", ["tiny", "20b", "120b"])
def test_its_parameters_are_the_ones_that_plans_are_made_for(size: str):
    shape = SIZES[size]
    prefix = "model.layers.0.mlp.experts."
    planned = {one.name: one.whole for one in pieces(shape, True, {}, 1, 0) if one.name.startswith(prefix)}
    held = {prefix + name: tuple(one.shape) for name, one in experts(shape).named_parameters()}
    assert held == planned


def test_blocks_and_scales_are_bytes_without_a_gradient():
    for name, parameter in experts(SIZES["20b"]).named_parameters():
        is_bytes = name.endswith(("_blocks", "_scales"))
        assert (parameter.dtype == torch.uint8) is is_bytes
        assert parameter.requires_grad is not is_bytes


def test_a_fresh_one_computes_by_the_reference():
    module = experts(SIZES["tiny"])
    assert module.kernel is experts_forward
    assert module.rows_kernel is None


def test_the_kernel_gets_the_parameters_the_module_holds_at_that_moment():
    module = experts(SIZES["tiny"])
    seen: list[tuple[torch.Tensor, PackedExperts]] = []

    def kernel(hidden_TH, index_TK, weight_TK, packed: PackedExperts) -> torch.Tensor:
        seen.append((index_TK, packed))
        return hidden_TH

    module.kernel = kernel
    local = nn.Parameter(torch.zeros(2, 3, 64))
    module._parameters["gate_up_proj_bias"] = local  # as a style does around a forward
    hidden_TH, index_TK = torch.zeros(1, 64), torch.zeros(1, 2, dtype=torch.long)
    assert module(hidden_TH, index_TK, torch.ones(1, 2)) is hidden_TH
    index, packed = seen[0]
    assert index is index_TK
    assert packed.gate_up_bias is local
    assert packed.down_blocks is module.down_proj_blocks
    assert (packed.alpha, packed.limit, packed.expert_count) == (1.702, 5.0, 8)


def test_the_routes_of_an_expert_are_counted_over_the_whole_model():
    """Which kernel is quicker hangs on them, and half of the experts get no more routes each than all did."""
    module = experts(SIZES["20b"])
    assert module.packed().routes_per_expert(64 * 4) == 8.0
    module.num_experts = 16  # as transformers' expert parallelism does, which cuts the parameters too
    module._parameters["down_proj_bias"] = nn.Parameter(module.down_proj_bias[:16])
    assert module.packed().expert_count == 16
    assert module.packed().routes_per_expert(64 * 4) == 8.0
