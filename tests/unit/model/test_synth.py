from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GptOssForCausalLM

from gptoss_dist.errors import CheckpointError, ConfigError, DoesNotFitError
from gptoss_dist.hub_config import is_packed, read_shape
from gptoss_dist.jobs.synth import run_synth
from gptoss_dist.kernels.mxfp4 import dequantize
from gptoss_dist.model import synth
from gptoss_dist.model.synth import random_entries, random_tensor, synthesize, synthetic_shape
from gptoss_dist.model.writer import plan_shards
from gptoss_dist.shapes import SIZES, TensorSpec


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(set(index["weight_map"].values())):
        tensors.update(load_file(folder / name))
    assert set(tensors) == set(index["weight_map"])
    return tensors


@pytest.fixture(scope="module", params=[False, True], ids=["packed", "dense"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth") / "out"
    answer = synthesize("tiny", folder, seed=3, device="cpu", layers=2, experts=4, dense=request.param)
    assert answer["folder"] == str(folder)
    assert answer["bytes"] == synthetic_shape("tiny", 2, 4).checkpoint_bytes(request.param)
    return folder


def test_it_writes_the_tensors_that_its_config_promises(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    shape = read_shape(config)
    assert (shape.layers, shape.experts) == (2, 4)
    written = {
        name: TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in load_all(checkpoint).items()
    }
    assert written == {spec.name: spec for spec in shape.tensors(dense=not is_packed(config))}


def test_transformers_loads_it_and_its_numbers_stay_ordinary(checkpoint: Path) -> None:
    model = GptOssForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer.encode("Any text will do for this.")])).logits
    assert bool(torch.isfinite(logits).all())
    assert 0.01 < float(logits.std()) < 10


def spec(name: str, *shape: int, dtype: str = "bfloat16") -> TensorSpec:
    return TensorSpec(name, shape, dtype)


def test_weights_have_the_spread_of_real_ones() -> None:
    weight = random_tensor(spec("model.layers.0.self_attn.q_proj.weight", 512, 256), 0, "cpu").float()
    assert abs(float(weight.std()) - 0.02) < 2e-4
    assert abs(float(weight.mean())) < 2e-4
    sinks = random_tensor(spec("model.layers.0.self_attn.sinks", 20_000), 0, "cpu").float()
    assert abs(float(sinks.std()) - 1) < 0.02
    assert bool((random_tensor(spec("model.norm.weight", 64), 0, "cpu") == 1).all())


def test_unpacked_experts_have_the_spread_of_real_ones_and_use_every_byte() -> None:
    name = "model.layers.0.mlp.experts.down_proj"
    blocks = random_tensor(spec(f"{name}_blocks", 4, 64, 15, 16, dtype="uint8"), 0, "cpu")
    scales = random_tensor(spec(f"{name}_scales", 4, 64, 15, dtype="uint8"), 0, "cpu")
    assert blocks.unique().numel() == 256
    assert scales.unique().tolist() == [118, 119, 120, 121]
    weight = dequantize(blocks, scales, torch.float32)
    assert abs(float(weight.std()) - 0.02) < 5e-4
    assert abs(float(weight.mean())) < 5e-4


def test_the_seed_and_the_name_decide_and_nothing_else() -> None:
    one = spec("model.layers.0.mlp.experts.down_proj_blocks", 4, 64, 15, 16, dtype="uint8")
    other = one._replace(name="model.layers.1.mlp.experts.down_proj_blocks")
    assert torch.equal(random_tensor(one, 7, "cpu"), random_tensor(one, 7, "cpu"))
    assert not torch.equal(random_tensor(one, 7, "cpu"), random_tensor(one, 8, "cpu"))
    assert not torch.equal(random_tensor(one, 7, "cpu"), random_tensor(other, 7, "cpu"))


def test_the_large_model_is_37_files() -> None:
    shards = plan_shards(list(random_entries(SIZES["120b"], 0, "cpu")), synth.SHARD_BYTES)
    assert len(shards) == 37
    assert max(sum(entry.nbytes for entry in shard) for shard in shards) <= synth.SHARD_BYTES


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(synth.shutil, "disk_usage", lambda _: usage(10**12, 0, 10**9))
    with pytest.raises(DoesNotFitError, match=r"needs 65\.3 GB .* 1\.0 GB free"):
        synthesize("120b", tmp_path / "deep" / "out", device="cpu")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda out: run_synth("7b", out), "no size '7b'. There is: 120b, 20b, tiny"),
        (lambda out: run_synth("tiny", None), "no folder to write to"),
        (lambda out: run_synth("tiny", out, layers=0), "layers must be at least 1"),
        (lambda out: run_synth("120b", out, experts=2), "4 experts per token are asked for, and there are 2"),
    ],
)
def test_impossible_wishes_are_refused(tmp_path: Path, run: Callable[[Path], object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(tmp_path / "out")
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_taken_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not an empty folder"):
        run_synth("tiny", tmp_path, layers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
