"""Loading in one process: alone, or as one rank of many on torch's fake process group, whose collectives do nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import SMALL, WIDE
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from gptoss_dist.config import compose_run
from gptoss_dist.errors import CheckpointError, ConfigError
from gptoss_dist.kernels.registry import choose_kernels
from gptoss_dist.model.checkpoint import open_checkpoint
from gptoss_dist.model.load import Loaded, load_model, local_shape
from gptoss_dist.plan.degrees import resolve_degrees
from gptoss_dist.plan.layout import pieces
from gptoss_dist.plan.rules import rules_of
from gptoss_dist.shapes import Shape

CPU = torch.device("cpu")
EXPERTS = "model.layers.1.mlp.experts"


@contextmanager
def as_rank(rank: int, world_size: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", world_size)):
        monkeypatch.setenv(name, str(value))
    if world_size == 1:
        yield
        return
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def load(folder: Path, *words: str) -> Loaded:
    run = compose_run(["model=gpt_oss_20b", *words])
    checkpoint = open_checkpoint(folder)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    kernels = choose_kernels(run.kernels, CPU, checkpoint.packed and not run.model.dequantize)
    degrees = resolve_degrees(run.plan, world_size, world_size)
    return load_model(run.model, checkpoint, run.plan, degrees, kernels, CPU, int(os.environ.get("RANK", "0")))


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16", "float32"])
@pytest.mark.parametrize("dense", [False, True])
def test_bytes_held_are_bytes_planned_in_every_dtype(make_checkpoint, dense: bool, dtype: str):
    loaded = load(make_checkpoint(dense=dense), "plan=single", f"model.dtype={dtype}")
    assert loaded.weight_bytes == loaded.planned.weights
    wanted = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    assert loaded.model.lm_head.weight.dtype == wanted
    assert loaded.model.model.layers[0].mlp.experts.down_proj_bias.dtype == wanted
    if dtype == "auto":
        assert loaded.weight_bytes == SMALL.checkpoint_bytes(dense)


@pytest.mark.parametrize(("plan", "ranks"), [("tp", 8), ("ep", 8), ("tp_ep", 8), ("ep", 2), ("custom", 4)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_rank_holds_what_was_planned(make_checkpoint, monkeypatch, plan: str, ranks: int, dtype: str):
    for rank in {0, 1, ranks - 1}:
        with as_rank(rank, ranks, monkeypatch):
            loaded = load(make_checkpoint(), f"plan={plan}", f"model.dtype={dtype}")
        tp = loaded.degrees.tp
        expected = pieces(SMALL, True, rules_of(loaded.plan, True), tp, rank % tp)
        assert {name: local_shape(one) for name, one in loaded.model.named_parameters()} == {
            one.name: one.local for one in expected
        }
        assert loaded.weight_bytes == loaded.planned.weights


@pytest.mark.parametrize(("ranks", "groups"), [(2, [45, 45]), (4, [23, 23, 23, 21]), (8, [12] * 7 + [6])])
def test_ninety_groups_are_cut_as_torch_cuts(make_checkpoint, monkeypatch, ranks: int, groups: list[int]):
    for rank in (0, ranks - 1):
        with as_rank(rank, ranks, monkeypatch):
            held = dict(load(make_checkpoint(WIDE), "plan=tp").model.named_parameters())
        assert held[f"{EXPERTS}.gate_up_proj_scales"].shape[1] == groups[rank]
        assert held[f"{EXPERTS}.down_proj_blocks"].shape[2] == groups[rank]


def test_a_rank_s_piece_is_the_file_s(make_checkpoint, monkeypatch):
    source = open_checkpoint(make_checkpoint()).slices
    with as_rank(3, 4, monkeypatch):
        held = dict(load(make_checkpoint(), "plan=tp").model.named_parameters())
    rows, sinks = source[f"{EXPERTS}.gate_up_proj_blocks"], source["model.layers.1.self_attn.sinks"]
    assert torch.equal(held[f"{EXPERTS}.gate_up_proj_blocks"].flatten(1, 2), rows[:, 12 * 64 : 15 * 64])
    assert torch.equal(held[f"{EXPERTS}.down_proj_scales"], source[f"{EXPERTS}.down_proj_scales"][:, :, 12:15])
    assert torch.equal(held["model.layers.1.self_attn.sinks"], sinks[12:16])


def test_parameters_are_plain_after_loading_but_for_the_embedding(make_checkpoint, monkeypatch):
    with as_rank(1, 2, monkeypatch):
        loaded = load(make_checkpoint(), "plan=tp")
    sharded = [name for name, one in loaded.model.named_parameters() if isinstance(one, DTensor)]
    assert sharded == ["model.embed_tokens.weight"]


def test_dequantising_happens_only_when_asked_for(make_checkpoint):
    asked = load(make_checkpoint(), "plan=single", "model.dequantize=true")
    left = load(make_checkpoint(), "plan=single")
    assert asked.weight_bytes == SMALL.checkpoint_bytes(dense=True)
    assert left.weight_bytes == SMALL.checkpoint_bytes()
    assert {one.dtype for one in asked.model.parameters()} == {torch.bfloat16}


def test_the_generation_config_is_the_checkpoint_s(make_checkpoint, tmp_path: Path):
    assert load(make_checkpoint(), "plan=single").model.generation_config.eos_token_id == [200002, 199999, 200012]
    bare = Path(shutil.copytree(make_checkpoint(), tmp_path / "bare"))
    (bare / "generation_config.json").unlink()
    assert load(bare, "plan=single").model.generation_config.eos_token_id is None


def test_device_map_needs_gpus(make_checkpoint):
    with pytest.raises(ConfigError, match="plan=device_map places layers over several GPUs"):
        load(make_checkpoint(), "plan=device_map")


@pytest.mark.parametrize(
    ("plan", "ranks", "shape", "said"),
    [
        ("tp", 5, SMALL, "16 query heads do not divide over 5 ranks. plan.tp can be 1, 2, 4, 8."),
        ("tp", 16, SMALL, "8 key-value heads do not divide over 16 ranks. plan.tp can be 1, 2, 4, 8."),
        ("ep", 3, SMALL, "a vocabulary of 512 does not divide over 3 ranks"),
        ("tp_ep", 8, WIDE, "4 experts do not divide over 8 ranks"),
    ],
)
def test_a_plan_that_the_model_cannot_take(
    make_checkpoint, monkeypatch, plan: str, ranks: int, shape: Shape, said: str
):
    with as_rank(0, ranks, monkeypatch), pytest.raises(ConfigError) as caught:
        load(make_checkpoint(shape), f"plan={plan}")
    assert said in str(caught.value)


def test_what_transformers_leaves_random_is_an_error(make_checkpoint, monkeypatch):
    whole = open_checkpoint(make_checkpoint())
    lost = "model.layers.2.self_attn.sinks"
    torn = dataclasses.replace(whole, slices={name: one for name, one in whole.slices.items() if name != lost})
    monkeypatch.setattr(sys.modules[__name__], "open_checkpoint", lambda folder: torn)
    with pytest.raises(CheckpointError, match=f"missing keys while loading, the first: {lost}"):
        load(make_checkpoint(), "plan=single")


def test_a_config_as_transformers_saves_it_gives_the_same_logits(make_checkpoint, tmp_path: Path):
    folder = Path(shutil.copytree(make_checkpoint(dense=True), tmp_path / "saved"))
    words, ids = ("plan=single", "model.dtype=float32"), torch.arange(40).view(1, -1)
    loaded = load(make_checkpoint(dense=True), *words)
    loaded.model.config.save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    assert "rope_parameters" in saved
    assert "rope_scaling" not in saved
    with torch.no_grad():
        assert torch.equal(load(folder, *words).model(ids).logits, loaded.model(ids).logits)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("swiglu_limit", 7, "transformers refuses it: Validation error for field 'swiglu_limit':"),
        ("attention_dropout", "none", "transformers refuses it: Validation error for field 'attention_dropout':"),
        ("pad_token_id", 199999, "pad_token_id is 199999, outside a vocabulary of 512."),
    ],
)
def test_a_config_that_transformers_cannot_take(make_checkpoint, tmp_path: Path, key: str, value: object, said: str):
    folder = Path(shutil.copytree(make_checkpoint(), tmp_path / "wrong"))
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(CheckpointError) as caught:
        load(folder, "plan=single")
    assert str(caught.value).startswith(f"{file}: {said}")
    assert "\n" not in str(caught.value)


def test_a_packed_model_is_not_written_back(make_checkpoint, tmp_path: Path):
    with pytest.raises(ValueError, match="not serializable"):
        load(make_checkpoint(), "plan=single").model.save_pretrained(tmp_path / "out")


@pytest.mark.parametrize("content", ["", '{"eos_token', "[]", '{"max_new_tokens": -3}'])
def test_a_broken_generation_config_is_named_before_loading(make_checkpoint, tmp_path: Path, content: str):
    folder = Path(shutil.copytree(make_checkpoint(), tmp_path / "broken"))
    file = folder / "generation_config.json"
    file.write_text(content)
    with pytest.raises(CheckpointError, match=f"^{file}: "):
        load(folder, "plan=single", "cluster.device=cpu")


def test_the_checkpoint_s_generation_config_is_the_model_s(make_checkpoint, tmp_path: Path):
    folder = Path(shutil.copytree(make_checkpoint(), tmp_path / "own"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4], "temperature": 0.5}))
    found = load(folder, "plan=single").model.generation_config
    assert (found.eos_token_id, found.temperature) == ([3, 4], 0.5)
