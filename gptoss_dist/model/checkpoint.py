"""A checkpoint folder, looked through before anything is loaded, and read slice by slice.

Every tensor is offered to transformers' loader as a lazy view that reads only the rows it is asked for. Views that hold
a tensor in another shape than the file (regrouped rows, dequantised experts) live in `gptoss_dist.model.views`.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from gptoss_dist.errors import CheckpointError
from gptoss_dist.files import read_json
from gptoss_dist.hub_config import is_packed, read_shape
from gptoss_dist.shapes import Shape, TensorSpec

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_FLOATS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""safetensors' name of a number format → torch's, for what is not packed."""
_BYTES = "U8"
_WANTED = ["*.json", "*.jinja", "*.txt", "model*.safetensors"]


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose files were all opened: nothing is missing, torn, or of another shape than its config says."""

    folder: Path
    config: dict[str, Any]
    shape: Shape
    packed: bool
    slices: dict[str, Any]
    """Tensor name → safetensors slice: `get_shape()`, `get_dtype()`, and indexing that reads from the file."""

    @property
    def dtype(self) -> str:
        """The number format of what is not packed, by torch's name."""
        kind = self.slices["model.embed_tokens.weight"].get_dtype()
        return _FLOATS[kind]


def locate(path: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint: `path` itself if it is one, else the hub's snapshot of that name.

    With HF_HUB_OFFLINE=1 only what is staged is looked at. Raises CheckpointError if there is neither.
    """
    if path and Path(path).is_dir():
        return Path(path)
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise CheckpointError(f"model.path={path}: no such folder, and no name on the hub (OWNER/NAME).")
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=_WANTED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().split("\n")[0].rstrip(".")
        offline = " HF_HUB_OFFLINE is set." if os.environ.get("HF_HUB_OFFLINE") else ""
        raise CheckpointError(
            f"model.path={path}: not a folder here, and the hub did not give it: {first}.{offline} Download it where "
            "there is a network, and pass the folder as model.path=DIR."
        ) from None


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open every file of `folder` and compare names, shapes and formats with what its config.json needs.

    Raises CheckpointError that names the file and the tensor.
    """
    config = read_json(folder / "config.json")
    shape = read_shape(config, str(folder / "config.json"))
    packed = is_packed(config)
    places = _places(folder)
    slices: dict[str, Any] = {}
    origin: dict[str, Path] = {}
    for file in sorted(set(places.values())) or [folder / _SINGLE]:
        handle = _open(file)
        for name in handle.keys():  # noqa: SIM118  a safetensors file is no mapping
            slices[name], origin[name] = handle.get_slice(name), file
    wanted = list(shape.tensors(dense=not packed))
    for spec in wanted:
        if spec.name not in slices:
            raise CheckpointError(
                f"{places.get(spec.name, folder)}: does not hold {spec.name}. A shard is missing, or belongs to "
                "another model than config.json."
            )
        _check_tensor(spec, slices[spec.name], origin[spec.name])
    if extra := sorted(set(slices) - {spec.name for spec in wanted}):
        raise CheckpointError(
            f"{origin[extra[0]]}: holds {extra[0]}, for which config.json has no place. The config and the weights "
            "belong to different models."
        )
    return Checkpoint(folder, config, shape, packed, slices)


def identity(checkpoint: Checkpoint) -> dict[str, str]:
    """What tells this checkpoint from another of the same shape, for a comparison between ranks.

    Digests of the configuration, of all names, shapes and formats, and of the first bytes of every tensor: copies of
    two revisions differ in the last, and no rank reads more than a few megabytes for it.
    """
    layout, content = hashlib.blake2b(digest_size=8), hashlib.blake2b(digest_size=8)
    for name, piece in sorted(checkpoint.slices.items()):
        shape = piece.get_shape()
        layout.update(f"{name} {shape} {piece.get_dtype()}\n".encode())
        first = (slice(0, 1),) * min(len(shape) - 1, 2)
        content.update(piece[first or slice(None)].contiguous().view(torch.uint8).numpy().tobytes())
    config = json.dumps(checkpoint.config, sort_keys=True).encode()
    return {
        "config.json": hashlib.blake2b(config, digest_size=8).hexdigest(),
        "tensor names and shapes": layout.hexdigest(),
        "tensor contents": content.hexdigest(),
    }


def _check_tensor(spec: TensorSpec, found: Any, file: Path) -> None:
    shape, kind = tuple(found.get_shape()), found.get_dtype()
    if shape != spec.shape:
        raise CheckpointError(
            f"{file}: {spec.name} is {list(shape)}, and config.json needs {list(spec.shape)}. The config and the "
            "weights belong to different models."
        )
    known = (_BYTES,) if spec.dtype == "uint8" else tuple(_FLOATS)
    if kind not in known:
        raise CheckpointError(f"{file}: {spec.name} is {kind}, and config.json needs {' or '.join(known)}.")


def _places(folder: Path) -> dict[str, Path]:
    """Tensor → file as the index has it; nothing if there is none, and then one file holds everything."""
    if not (folder / _INDEX).is_file():
        return {}
    names = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise CheckpointError(f"{folder / _INDEX}: has no weight_map of tensors to files. Fetch it again.")
    return {name: folder / file for name, file in names.items()}


def _open(file: Path) -> Any:
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file, though the checkpoint needs it. Fetch it again.")
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: torn or not safetensors ({error}). Fetch it again.") from None
