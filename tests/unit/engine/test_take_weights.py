from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from conftest import SMALL

from gptoss_dist.engine.take_weights import take_weights
from gptoss_dist.errors import PlanError
from gptoss_dist.plan.degrees import Degrees


@pytest.fixture
def loaded(open_small):
    return open_small("model.dtype=float32").loaded


def test_query_key_and_value_are_one_tensor_and_the_models_parameters_lie_in_it(loaded):
    attention = loaded.model.model.layers[1].self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    rows = torch.cat([one.weight.detach() for one in projections])
    bias = torch.cat([one.bias.detach() for one in projections])
    layer = take_weights(loaded, 0).layers[1]
    assert torch.equal(layer.qkv_CH, rows)
    assert torch.equal(layer.qkv_bias_C, bias)
    storage = layer.qkv_CH.untyped_storage()
    assert storage.nbytes() == layer.qkv_CH.nbytes
    assert all(one.weight.untyped_storage().data_ptr() == storage.data_ptr() for one in projections)
    layer.qkv_CH[0] = 7
    assert (attention.q_proj.weight[0] == 7).all()


def test_the_models_own_forward_is_left_as_it_was(loaded):
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = loaded.model(input_ids=ids).logits
        take_weights(loaded, 0)
        assert torch.equal(loaded.model(input_ids=ids).logits, before)


def test_weights_are_taken_twice_without_a_copy(loaded):
    first, second = take_weights(loaded, 0), take_weights(loaded, 0)
    for one, other in zip(first.layers, second.layers, strict=True):
        assert one.qkv_CH.data_ptr() == other.qkv_CH.data_ptr()
        assert one.qkv_bias_C.data_ptr() == other.qkv_bias_C.data_ptr()


def test_what_a_kernel_counts_with_belongs_to_one_engine_alone(loaded):
    experts = loaded.model.model.layers[1].mlp.experts
    experts.counters = torch.ones(3, dtype=torch.int32)
    experts.rows_kernel = lambda *_, packed: packed
    first, second = (take_weights(loaded, 0).layers[1].expert_rows((), (), ()) for _ in range(2))
    found = [experts.counters, first.counters, second.counters]
    assert [one.tolist() for one in found] == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert len({one.data_ptr() for one in found}) == 3
    assert first.down_blocks is second.down_blocks is experts.down_proj_blocks


def test_rows_of_routes_come_from_the_kernel_that_was_installed_if_it_has_them(loaded):
    assert all(layer.expert_rows is None for layer in take_weights(loaded, 0).layers)
    seen = []
    experts = loaded.model.model.layers[2].mlp.experts
    experts.rows_kernel = lambda *given, packed: seen.append((*given, packed))
    layers = take_weights(loaded, 0).layers
    assert [layer.expert_rows is None for layer in layers] == [True, True, False, True]
    layers[2].expert_rows("hidden", "index", "weight")
    [(*given, packed)] = seen
    assert given == ["hidden", "index", "weight"]
    assert packed.down_blocks is experts.down_proj_blocks


def test_numbers_of_the_step_are_those_of_the_model(loaded):
    weights = take_weights(loaded, 0)
    assert (weights.query_heads, weights.kv_heads, weights.head_size) == (SMALL.heads, SMALL.kv_heads, SMALL.head_dim)
    assert (weights.window, weights.top_k, weights.first_expert) == (16, 2, 0)
    assert [layer.sliding for layer in weights.layers] == [True, False, True, False]
    assert weights.attention_scaling == loaded.model.model.rotary_emb.attention_scaling != 1
    assert weights.inverse_frequency_F.dtype == torch.float32
    assert weights.epsilon == 1e-5
    assert not any(dataclasses.astuple(weights.split))


UNEXPECTED = {
    "model.layers.2.self_attn.k_proj.weight": (4, 64),
    "model.layers.1.self_attn.o_proj.weight": (60, 256),
    "model.layers.1.self_attn.o_proj.bias": (32,),
    "model.layers.3.self_attn.sinks": (4,),
    "model.layers.0.input_layernorm.weight": (32,),
    "model.layers.0.post_attention_layernorm.weight": (32,),
    "model.layers.1.mlp.router.weight": (4, 64),
    "model.layers.1.mlp.router.bias": (4,),
    "model.layers.2.mlp.experts.down_proj_bias": (8, 32),
    "model.layers.2.mlp.experts.gate_up_proj_bias": (8, 3, 64),
    "model.norm.weight": (32,),
    "model.embed_tokens.weight": (100, 64),
    "lm_head.weight": (512, 32),
}


@pytest.mark.parametrize("name", UNEXPECTED)
def test_an_unexpected_shape_is_named(loaded, name):
    module, _, parameter = name.rpartition(".")
    setattr(loaded.model.get_submodule(module), parameter, torch.nn.Parameter(torch.zeros(UNEXPECTED[name])))
    with pytest.raises(PlanError, match=f"{name} has the shape \\{list(UNEXPECTED[name])}".replace("]", "\\]")):
        take_weights(loaded, 0)


def halved(loaded, *names: str):
    """The model as the first of two ranks would hold it, if `names` were cut by rows."""
    loaded = dataclasses.replace(loaded, model=copy.deepcopy(loaded.model), degrees=Degrees(1, 2))
    for name in names:
        module, _, parameter = name.rpartition(".")
        whole = loaded.model.get_parameter(name)
        piece = torch.nn.Parameter(whole[: len(whole) // 2].clone())
        setattr(loaded.model.get_submodule(module), parameter, piece)
    return loaded


def test_heads_that_are_dealt_out_in_part_are_refused(loaded):
    names = [f"model.layers.{number}.self_attn.sinks" for number in range(4)]
    with pytest.raises(PlanError, match=r"model.layers.0.self_attn.sinks is cut over the ranks and q_proj.weight is w"):
        take_weights(halved(loaded, *names), 0)


def test_layers_that_are_cut_in_different_ways_are_refused(loaded):
    experts = "model.layers.2.mlp.experts"
    with pytest.raises(PlanError, match=r"some layers are cut over the ranks and others are not"):
        take_weights(halved(loaded, f"{experts}.down_proj_bias", f"{experts}.gate_up_proj_bias"), 0)


def test_experts_with_half_of_one_bias_are_refused(loaded):
    name = "model.layers.0.mlp.experts.down_proj_bias"
    with pytest.raises(PlanError, match=r"model.layers.0.mlp.experts.gate_up_proj_bias has the shape \[8, 15, 64\]"):
        take_weights(halved(loaded, name), 0)
