from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from transformers import GptOssConfig

from gptoss_dist.errors import CheckpointError
from gptoss_dist.hub_config import is_packed, read_shape
from gptoss_dist.shapes import SIZES, Rope, Shape

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


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_possible_and_survives_both_spellings_of_its_config(size: str) -> None:
    shape = SIZES[size]
    assert shape.problem() is None
    assert read_shape(shape.hub_config()) == shape
    assert read_shape(GptOssConfig(**shape.hub_config()).to_dict()) == shape


def test_default_rope_is_kept_without_yarn() -> None:
    shape = dataclasses.replace(SMALL, rope=Rope("default", 10000.0, factor=1.0))
    assert read_shape(shape.hub_config()) == shape
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
        read_shape({**SMALL.hub_config(), **change}, source="here/config.json")
    assert words in str(caught.value)
    assert str(caught.value).startswith("here/config.json: ")


def test_a_config_without_model_type_is_refused() -> None:
    config = SMALL.hub_config()
    del config["model_type"]
    with pytest.raises(CheckpointError, match="model_type is None"):
        read_shape(config)


def test_packed_or_dense_is_read_from_the_quantization_entry() -> None:
    assert is_packed(SMALL.hub_config())
    assert not is_packed(SMALL.hub_config(dense=True))


def test_layer_types_may_be_left_to_the_architecture() -> None:
    config = {**SMALL.hub_config(), "layer_types": None}
    assert read_shape(config) == SMALL
    assert GptOssConfig(**config).layer_types == SMALL.layer_types
