"""Our two styles, on torch's fake process group: its collectives do nothing, so a rank's own part is what comes out.

The tests whose names begin with `upstream` fail once transformers closes the gap that a style fills.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers
from packaging.version import Version
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import GptOssConfig
from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from gptoss_dist.model.experts import PackedGptOssExperts
from gptoss_dist.model.styles import ExpertSlices, LocalShards, register_styles
from gptoss_dist.plan.rules import EXPERT_SLICES, LOCAL
from gptoss_dist.plan.shard import STYLES, local_shape

CONFIG = GptOssConfig(
    num_local_experts=4, hidden_size=64, intermediate_size=160, swiglu_limit=7.0, experts_implementation="eager"
)
ROUTES = (torch.ones(3, 64), torch.tensor([[0, 1], [2, 3], [1, 2]]), torch.full((3, 2), 0.5))


@contextmanager
def mesh_of(ranks: int, rank: int) -> Iterator[DeviceMesh]:
    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (ranks,), mesh_dim_names=("tp",))
    finally:
        dist.destroy_process_group()


def experts_with_bias_only() -> GptOssExperts:
    """Experts whose output is the bias of `down_proj`, one."""
    module = GptOssExperts(CONFIG)
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.ones_(module.down_proj_bias)
    return module


@torch.no_grad()
def part_of_rank(style: Any, rank: int, module: Any = None) -> torch.Tensor:
    """What `rank` of two adds to the sum."""
    module = module or experts_with_bias_only()
    with mesh_of(2, rank) as mesh:
        return style.install_forward(module, mesh)(*ROUTES)


def test_registered_twice_is_registered_once():
    register_styles()
    before = len(ALL_PARALLEL_STYLES)
    register_styles()
    assert len(ALL_PARALLEL_STYLES) == before
    assert isinstance(ALL_PARALLEL_STYLES[LOCAL], LocalShards)
    assert isinstance(ALL_PARALLEL_STYLES[EXPERT_SLICES], ExpertSlices)


def test_every_style_that_a_plan_may_name_is_there():
    register_styles()
    assert set(STYLES) - set(ALL_PARALLEL_STYLES) == set()


def test_the_bias_is_added_by_the_first_rank_alone():
    assert torch.equal(part_of_rank(ExpertSlices(), 0), torch.ones(3, 64))
    assert torch.equal(part_of_rank(ExpertSlices(), 1), torch.zeros(3, 64))


def fails(*_: torch.Tensor) -> torch.Tensor:
    raise IndexError


def test_the_bias_is_back_after_a_forward_and_after_one_that_failed():
    module = experts_with_bias_only()
    bias = module.down_proj_bias
    part_of_rank(ExpertSlices(), 1, module)
    assert module.down_proj_bias is bias
    module.forward = fails
    with pytest.raises(IndexError):
        part_of_rank(ExpertSlices(), 1, module)
    assert module.down_proj_bias is bias


@pytest.mark.parametrize("kind", [PackedGptOssExperts, GptOssExperts])
@pytest.mark.parametrize(("ranks", "rank"), [(2, 0), (2, 1), (4, 3)])
def test_parameters_are_cut_as_planned(kind: type, ranks: int, rank: int):
    with torch.device("meta"):
        module = kind(CONFIG)
    whole = {name: tuple(one.shape) for name, one in module.named_parameters()}
    gradients = {name: one.requires_grad for name, one in module.named_parameters()}
    with mesh_of(ranks, rank) as mesh:
        for name in whole:
            ExpertSlices().shard_param(module, name, mesh)
        for name, parameter in module.named_parameters():
            held = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            assert tuple(held.shape) == local_shape(name, whole[name], EXPERT_SLICES, ranks, rank)
            assert tuple(parameter.shape) == whole[name]
            assert parameter.requires_grad == gradients[name]
            assert isinstance(parameter, DTensor) is (name != "down_proj_bias")


def test_local_shards_are_plain_tensors_inside_a_forward_only():
    with torch.device("meta"):
        module = PackedGptOssExperts(CONFIG)
    with mesh_of(2, 1) as mesh:
        ExpertSlices().shard_param(module, "down_proj_scales", mesh)
        with LocalShards().context_around_forward(module, mesh):
            assert not isinstance(module.down_proj_scales, DTensor)
            assert module.down_proj_scales.shape == (4, 64, 2)
        assert isinstance(module.down_proj_scales, DTensor)


def test_upstream_has_no_tensor_parallel_plan_for_gpt_oss():
    assert not GptOssConfig.base_model_tp_plan
    assert not GptOssConfig().base_model_tp_plan


def test_upstream_adds_the_bias_on_every_rank():
    assert torch.equal(part_of_rank(ALL_PARALLEL_STYLES["moe_tp_experts"], 1), torch.ones(3, 64))


@pytest.mark.skipif(Version(transformers.__version__) >= Version("5.23"), reason="for versions before 5.23")
def test_upstream_lacks_local_params_before_5_23():
    assert "local_params" not in ALL_PARALLEL_STYLES
