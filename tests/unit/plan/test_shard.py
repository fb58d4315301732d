from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers.distributed import expert_parallel  # noqa: F401  registers its styles
from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES

from gptoss_dist.errors import ConfigError
from gptoss_dist.model.styles import register_styles
from gptoss_dist.plan.shard import STYLES, chunk, local_shape


@contextmanager
def pretended_rank(rank: int, ranks: int) -> Iterator[DeviceMesh]:
    """A mesh as rank `rank` sees it, without the other ranks: torch's own fake process group."""
    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (ranks,), mesh_dim_names=("tp",))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 7, 8, 16, 100])
def test_chunk_is_torch_chunk(ranks):
    for size in range(1, 130):
        theirs = [len(piece) for piece in torch.arange(size).chunk(ranks)]
        theirs += [0] * (ranks - len(theirs))
        ours = [chunk(size, ranks, rank) for rank in range(ranks)]
        assert [length for _, length in ours] == theirs
        whole = torch.arange(size)
        assert torch.equal(torch.cat([whole[start : start + length] for start, length in ours]), whole)


_TENSORS = {
    "weight": (24, 20),
    "bias": (24,),
    "sinks": (16,),
    "stacked": (6, 24, 20),
    "gate_up_proj_blocks": (8, 15, 64, 2, 16),
    "gate_up_proj_scales": (8, 15, 64, 2),
    "gate_up_proj_bias": (8, 15, 64),
    "down_proj_blocks": (8, 64, 15, 16),
    "down_proj_scales": (8, 64, 15),
    "down_proj_bias": (8, 64),
}
_MADE_FOR = {
    "colwise": ("weight", "bias", "sinks", "stacked"),
    "colwise_gather_output": ("weight", "bias"),
    "rowwise": ("weight", "bias", "stacked"),
    "rowwise_split_input": ("weight", "bias"),
    "embedding_rowwise": ("weight",),
    "embedding_colwise": ("weight",),
    "grouped_gemm": tuple(name for name in _TENSORS if "proj" in name),
    "ep_dispatch_experts": tuple(name for name in _TENSORS if "proj" in name),
    "gptoss_expert_slices": tuple(name for name in _TENSORS if "proj" in name),
    "gptoss_local": ("weight", "bias", "sinks"),
    "replicate": tuple(_TENSORS),
}


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_every_style_cuts_as_transformers_does(ranks):
    """What transformers' own style leaves on a rank, against our arithmetic."""
    register_styles()
    assert set(_MADE_FOR) == set(STYLES)
    for rank in range(ranks):
        with pretended_rank(rank, ranks) as mesh:
            for style, names in _MADE_FOR.items():
                for name in names:
                    module = torch.nn.Module()
                    whole = torch.zeros(_TENSORS[name], dtype=torch.uint8, device="meta")
                    module.register_parameter(name, torch.nn.Parameter(whole, requires_grad=False))
                    ALL_PARALLEL_STYLES[style].shard_param(module, name, mesh)
                    held = module._parameters[name]
                    local = held.to_local() if hasattr(held, "to_local") else held
                    ours = local_shape(f"model.layers.0.x.{name}", _TENSORS[name], style, ranks, rank)
                    assert ours == tuple(local.shape), (style, name, rank)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_pieces_add_up_to_the_whole(style, ranks):
    for name in _MADE_FOR[style]:
        whole = _TENSORS[name]
        locals_ = [local_shape(name, whole, style, ranks, rank) for rank in range(ranks)]
        differing = [dim for dim in range(len(whole)) if {one[dim] for one in locals_} != {whole[dim]}]
        assert len(differing) <= 1
        if differing:
            assert sum(one[differing[0]] for one in locals_) == whole[differing[0]]


def test_without_a_style_everything_is_whole():
    assert local_shape("model.norm.weight", (64,), None, 4, 3) == (64,)


def test_gate_up_and_down_are_cut_at_the_same_group():
    for rank in range(4):
        held = {
            name: local_shape(name, shape, "gptoss_expert_slices", 4, rank)
            for name, shape in _TENSORS.items()
            if "proj" in name
        }
        groups = {held["gate_up_proj_blocks"][1], held["gate_up_proj_scales"][1], held["gate_up_proj_bias"][1]}
        groups |= {held["down_proj_blocks"][2], held["down_proj_scales"][2]}
        assert groups == {[4, 4, 4, 3][rank]}
        assert held["down_proj_bias"] == _TENSORS["down_proj_bias"]
        assert all(shape[0] == 8 for shape in held.values())


def test_a_dimension_that_is_not_there_is_an_error_naming_the_parameter():
    with pytest.raises(
        ConfigError, match=r"embedding_colwise cuts dimension 2, and model\.layers\.0\.mlp\.router\.bias"
    ):
        local_shape("model.layers.0.mlp.router.bias", (8,), "embedding_colwise", 2, 0)
