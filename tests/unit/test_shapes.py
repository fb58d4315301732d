from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM

from gptoss_dist.errors import CheckpointError
from gptoss_dist.shapes import SIZES, Rope, Shape, is_packed

SMALL = Shape(
    layers=3,
    hidden=64,
    intermediate=96,
    experts=4,
    experts_per_token=2,
    heads=8,
    kv_heads=2,
    head_dim=16,
    vocab=512,
    sliding_window=16,
    max_position=256,
)


def test_sizes_are_those_the_hub_states_in_its_index_files() -> None:
    assert SIZES["120b"].checkpoint_bytes() == 65_248_815_744
    assert SIZES["20b"].checkpoint_bytes() == 13_761_264_768
    assert len(list(SIZES["20b"].tensors())) == 459


def test_parameter_counts_are_those_of_the_model_card() -> None:
    # arXiv:2508.10925, table 1: 116.83 and 20.91 billion.
    assert round(SIZES["120b"].parameter_count() / 1e9, 2) == 116.83
    assert round(SIZES["20b"].parameter_count() / 1e9, 2) == 20.91


def test_dense_tensors_are_those_of_the_model_in_transformers() -> None:
    shape = SIZES["tiny"]
    with torch.device("meta"):
        model = GptOssForCausalLM(GptOssConfig(**shape.hub_config(dense=True)))
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {spec.name: spec.shape for spec in shape.tensors(dense=True)} == theirs


def test_packed_tensors_replace_each_expert_weight_by_blocks_and_scales() -> None:
    dense = {spec.name: spec.shape for spec in SMALL.tensors(dense=True)}
    packed = {spec.name: (spec.shape, spec.dtype) for spec in SMALL.tensors()}
    for layer in range(SMALL.layers):
        for projection, rows, groups in (("gate_up_proj", 192, 2), ("down_proj", 64, 3)):
            name = f"model.layers.{layer}.mlp.experts.{projection}"
            assert dense.pop(name) == (4, groups * 32, rows)
            assert packed.pop(f"{name}_blocks") == ((4, rows, groups, 16), "uint8")
            assert packed.pop(f"{name}_scales") == ((4, rows, groups), "uint8")
    assert {name: (shape, "bfloat16") for name, shape in dense.items()} == packed


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_possible_and_survives_both_spellings_of_its_config(size: str) -> None:
    shape = SIZES[size]
    assert shape.problem() is None
    assert Shape.from_config(shape.hub_config()) == shape
    assert Shape.from_config(GptOssConfig(**shape.hub_config()).to_dict()) == shape


def test_hub_config_gives_transformers_the_rope_it_has_by_default() -> None:
    theirs = GptOssConfig()
    ours = GptOssConfig(**SIZES["120b"].hub_config())
    assert ours.rope_parameters == theirs.rope_parameters == SIZES["120b"].rope_parameters
    assert ours.layer_types == theirs.layer_types
    assert (ours.num_local_experts, ours.vocab_size) == (theirs.num_local_experts, theirs.vocab_size)


def test_default_rope_is_kept_without_yarn() -> None:
    shape = dataclasses.replace(SMALL, rope=Rope("default", 10000.0, factor=1.0))
    assert Shape.from_config(shape.hub_config()) == shape
    assert shape.rope_parameters == {"rope_theta": 10000.0, "rope_type": "default"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"hidden_size": "2880"}, "hidden_size is '2880'"),
        ({"hidden_size": 100}, "hidden must be a multiple of 32"),
        ({"num_key_value_heads": 3}, "heads must be a multiple of kv_heads"),
        ({"num_local_experts": 1}, "2 experts per token"),
        ({"num_local_experts": 0}, "experts must be at least 1"),
        ({"head_dim": 15}, "head_dim must be even"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"swiglu_alpha": 1.0}, "swiglu_alpha is 1.0"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_type is 'llama3'"),
        ({"rope_theta": "big"}, "rope_theta is 'big'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quant_method is 'fp8'"),
    ],
)
def test_a_wrong_config_is_refused_by_key(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Shape.from_config({**SMALL.hub_config(), **change}, source="here/config.json")
    assert words in str(caught.value)
    assert str(caught.value).startswith("here/config.json: ")


def test_a_config_without_model_type_is_refused() -> None:
    config = SMALL.hub_config()
    del config["model_type"]
    with pytest.raises(CheckpointError, match="model_type is None"):
        Shape.from_config(config)


def test_packed_or_dense_is_read_from_the_quantization_entry() -> None:
    assert is_packed(SMALL.hub_config())
    assert not is_packed(SMALL.hub_config(dense=True))


def test_shapes_need_no_torch() -> None:
    code = "import sys, gptoss_dist.shapes; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
