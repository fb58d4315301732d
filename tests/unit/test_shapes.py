from __future__ import annotations

import subprocess
import sys

import torch
from transformers import GptOssConfig, GptOssForCausalLM

from gptoss_dist.shapes import SIZES, Shape

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


def test_hub_config_gives_transformers_the_rope_it_has_by_default() -> None:
    theirs = GptOssConfig()
    ours = GptOssConfig(**SIZES["120b"].hub_config())
    assert ours.rope_parameters == theirs.rope_parameters == SIZES["120b"].rope_parameters
    assert ours.layer_types == theirs.layer_types
    assert (ours.num_local_experts, ours.vocab_size) == (theirs.num_local_experts, theirs.vocab_size)


def test_shapes_need_no_torch() -> None:
    code = "import sys, gptoss_dist.shapes; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
