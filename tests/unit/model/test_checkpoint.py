from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from gptoss_dist.errors import CheckpointError
from gptoss_dist.model.checkpoint import locate, open_checkpoint

INDEX = "model.safetensors.index.json"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(make_checkpoint, tmp_path: Path) -> Path:
    """A checkpoint of one's own to break."""
    return Path(shutil.copytree(make_checkpoint(), tmp_path / "broken"))


def edit_json(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def file_of(folder: Path, tensor: str) -> Path:
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][tensor]


def edit_tensors(folder: Path, tensor: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    file = file_of(folder, tensor)
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return file


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dense", [False, True])
def test_a_good_checkpoint(make_checkpoint, dense: bool):
    checkpoint = open_checkpoint(make_checkpoint(dense=dense))
    assert checkpoint.packed is not dense
    assert checkpoint.shape == SMALL
    assert checkpoint.dtype == "bfloat16"
    assert set(checkpoint.slices) == {spec.name for spec in SMALL.tensors(dense)}
    assert len(list(checkpoint.folder.glob("*.safetensors"))) > 3


def test_a_slice_reads_what_the_file_holds(make_checkpoint):
    folder = make_checkpoint()
    whole = load_file(file_of(folder, Q_PROJ))[Q_PROJ]
    assert torch.equal(open_checkpoint(folder).slices[Q_PROJ][3:9, 5:7], whole[3:9, 5:7])


def test_one_file_without_an_index(folder: Path):
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    (folder / INDEX).unlink()
    save_file(tensors, folder / "model.safetensors")
    assert set(open_checkpoint(folder).slices) == set(tensors)


@pytest.mark.parametrize("name", ["float16", "float32"])
def test_other_floats_are_kept(folder: Path, name: str):
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({key: one.to(getattr(torch, name)) for key, one in tensors.items() if one.is_floating_point()})

    edit_tensors(folder, "model.embed_tokens.weight", change)
    assert open_checkpoint(folder).dtype == name


def test_no_such_folder(tmp_path: Path):
    assert refusal(tmp_path / "nowhere").startswith(f"{tmp_path}/nowhere/config.json: no such file.")


def test_a_missing_file(folder: Path):
    file = file_of(folder, Q_PROJ)
    file.unlink()
    assert refusal(folder) == f"{file}: no such file, though the checkpoint needs it. Fetch it again."


def test_neither_index_nor_weights(folder: Path):
    for file in (folder / INDEX, *folder.glob("*.safetensors")):
        file.unlink()
    assert refusal(folder).startswith(f"{folder}/model.safetensors: no such file")


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file(folder: Path, kept: int):
    file = file_of(folder, Q_PROJ)
    file.write_bytes(file.read_bytes()[:kept])
    assert refusal(folder).startswith(f"{file}: torn or not safetensors (")


def test_a_file_with_bytes_at_its_end(folder: Path):
    file = file_of(folder, Q_PROJ)
    file.write_bytes(file.read_bytes() + b"\0")
    assert refusal(folder).startswith(f"{file}: torn or not safetensors (")


@pytest.mark.parametrize("content", [b"\x10\0\0\0\0\0\0\0{not json      }", b"version https://git-lfs.github.com/spec"])
def test_a_file_of_another_kind(folder: Path, content: bytes):
    file = file_of(folder, Q_PROJ)
    file.write_bytes(content)
    assert refusal(folder).startswith(f"{file}: torn or not safetensors (")


def test_a_tensor_that_its_file_lacks(folder: Path):
    file = edit_tensors(folder, Q_PROJ, lambda tensors: tensors.pop(Q_PROJ))
    assert refusal(folder).startswith(f"{file}: does not hold {Q_PROJ}.")


def test_a_tensor_that_neither_index_nor_file_has(folder: Path):
    edit_tensors(folder, Q_PROJ, lambda tensors: tensors.pop(Q_PROJ))
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    del places[Q_PROJ]
    edit_json(folder / INDEX, weight_map=places)
    assert refusal(folder).startswith(f"{folder}: does not hold {Q_PROJ}.")


def test_a_tensor_that_only_the_index_lacks_is_found(folder: Path):
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    del places[Q_PROJ]
    edit_json(folder / INDEX, weight_map=places)
    assert Q_PROJ in open_checkpoint(folder).slices


def test_another_shape(folder: Path):
    file = edit_tensors(folder, Q_PROJ, lambda tensors: tensors.update({Q_PROJ: torch.zeros(7, 64).bfloat16()}))
    assert refusal(folder).startswith(f"{file}: {Q_PROJ} is [7, 64], and config.json needs [256, 64].")


@pytest.mark.parametrize(
    ("tensor", "dtype", "said"),
    [
        (Q_PROJ, torch.uint8, "is U8, and config.json needs BF16 or F16 or F32."),
        (Q_PROJ, torch.int64, "is I64, and config.json needs BF16 or F16 or F32."),
        ("model.embed_tokens.weight", torch.float64, "is F64, and config.json needs BF16 or F16 or F32."),
        ("model.layers.1.mlp.experts.down_proj_blocks", torch.bfloat16, "is BF16, and config.json needs U8."),
    ],
)
def test_another_format(folder: Path, tensor: str, dtype: torch.dtype, said: str):
    file = edit_tensors(folder, tensor, lambda tensors: tensors.update({tensor: tensors[tensor].to(dtype)}))
    assert refusal(folder) == f"{file}: {tensor} {said}"


@pytest.mark.parametrize(("layers", "wrong"), [(3, "model.layers.3."), (5, "model.layers.4.")])
def test_a_config_with_another_number_of_layers(folder: Path, layers: int, wrong: str):
    changes = {"num_hidden_layers": layers, "layer_types": ...}
    edit_json(folder / "config.json", **changes)
    assert wrong in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "llama"}, "model_type is 'llama', and gpt-oss needs 'gpt_oss'."),
        ({"model_type": ...}, "model_type is None, and gpt-oss needs 'gpt_oss'."),
        ({"hidden_size": "64"}, "hidden_size is '64', and gpt-oss needs a whole number."),
        ({"num_local_experts": ...}, "num_local_experts is None, and gpt-oss needs a whole number."),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config.quant_method is 'gptq'"),
    ],
)
def test_a_config_of_something_else(folder: Path, changes: dict[str, Any], said: str):
    edit_json(folder / "config.json", **changes)
    message = refusal(folder)
    assert message.startswith(f"{folder}/config.json: {said}")


def test_a_config_of_another_width_names_the_weights(folder: Path):
    edit_json(folder / "config.json", hidden_size=128)
    assert refusal(folder).endswith("The config and the weights belong to different models.")


def test_a_packed_config_over_dense_weights(make_checkpoint, folder: Path, tmp_path: Path):
    dense = Path(shutil.copytree(make_checkpoint(dense=True), tmp_path / "dense"))
    shutil.copy(folder / "config.json", dense / "config.json")
    assert "does not hold model.layers.0.mlp.experts.gate_up_proj_blocks" in refusal(dense)


@pytest.mark.parametrize("name", ["config.json", INDEX])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b""])
def test_broken_json(folder: Path, name: str, content: bytes):
    (folder / name).write_bytes(content)
    assert refusal(folder).startswith(f"{folder}/{name}: ")


@pytest.mark.parametrize("places", [..., [], {}, {Q_PROJ: ["a"]}, "model.safetensors"])
def test_an_index_without_a_map(folder: Path, places: Any):
    edit_json(folder / INDEX, weight_map=places)
    assert refusal(folder) == f"{folder}/{INDEX}: has no weight_map of tensors to files. Fetch it again."


def test_a_folder_is_located_as_it_is(folder: Path):
    assert locate(str(folder)) == folder


@pytest.mark.parametrize("path", ["/no/such/folder", "nowhere", "./a/b", "~/weights", "a/b/c", ""])
def test_what_is_neither_a_folder_nor_a_name(path: str):
    with pytest.raises(CheckpointError, match=r"no such folder, and no name on the hub \(OWNER/NAME\)"):
        locate(path)


@pytest.mark.parametrize("path", ["openai/gpt-oss-20b", "owner/bad name"])
def test_a_name_that_is_not_staged(monkeypatch, tmp_path: Path, path: str):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError) as caught:
        locate(path)
    message = str(caught.value)
    assert message.startswith(f"model.path={path}: not a folder here, and the hub did not give it: ")
    assert "HF_HUB_OFFLINE is set." in message
    assert "\n" not in message
