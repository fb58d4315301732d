"""Writes checkpoints as the hub lays them out: safetensors shards, their index, and the two config files.

A tensor is made when its turn comes and dropped once it is in its file, so memory stays at one tensor a worker however
large the checkpoint is; safetensors' own `save_file` needs a whole shard at a time and makes files that only their
owner can read. Everything is written into a hidden folder beside the wanted one and renamed at the end: a folder with
the wanted name is a complete checkpoint.

A shard (https://huggingface.co/docs/safetensors): 8 bytes with the length of the header, little endian; the header, a
JSON object of name → dtype, shape, byte range, padded with spaces; the tensors' bytes, end to end.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptoss_dist.errors import CheckpointError, DoesNotFitError
from gptoss_dist.shapes import EOS_TOKENS, PAD_TOKEN

_DTYPE_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.uint8: "U8"}
_BOS_TOKEN = 199998
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_WRITE_BYTES = 1 << 26

Progress = Callable[[int], None]
"""Called with the number of bytes just written, from any thread."""


@dataclass(frozen=True)
class Entry:
    """One tensor to write: `make` is called once, from any thread, and must return this shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Iterable[Entry],
    shard_bytes: int,
    workers: int = 1,
    progress: Progress | None = None,
) -> list[str]:
    """Write a whole checkpoint into `folder`, which must be absent or empty; returns the names of its shards.

    `shard_bytes` bounds the tensors of one shard, except for a single tensor that is larger. Raises CheckpointError if
    the folder is taken or cannot be written, DoesNotFitError if the disk is full; neither leaves anything behind.
    """
    with new_folder(folder) as unfinished:
        return write_files(unfinished, config, tensors, shard_bytes, workers, progress)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a hidden sibling of `folder` to fill; it takes the wanted name when the block ends well, else it goes.

    Raises CheckpointError if the folder holds something already or cannot be made.
    """
    folder = folder.absolute()
    unfinished = folder.with_name(f".{folder.name}.unfinished-{os.getpid()}")
    with _disk_errors(folder):
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise CheckpointError(f"{folder} exists and is not an empty folder. Name another one, or remove it first.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished.mkdir()
        unfinished.chmod(0o755)
    try:
        yield unfinished
        with _disk_errors(folder):
            _sync_folder(unfinished)
            unfinished.rename(folder)
            _sync_folder(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_files(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Iterable[Entry],
    shard_bytes: int,
    workers: int = 1,
    progress: Progress | None = None,
) -> list[str]:
    """Write a checkpoint's files into an existing folder, `workers` shards at a time; returns the shards' names."""
    shards = plan_shards(list(tensors), shard_bytes)
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        jobs = [pool.submit(_write_shard, folder / n, s, progress) for n, s in zip(names, shards, strict=True)]
        for job in wait(jobs, return_when=FIRST_EXCEPTION).done:
            job.result()
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C: no new shard is begun
    write_json(folder / "model.safetensors.index.json", _index(names, shards))
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation_config())
    return names


def plan_shards(tensors: list[Entry], shard_bytes: int) -> list[list[Entry]]:
    """Split tensors, in order, into shards of at most `shard_bytes`; a larger tensor stands alone."""
    shards: list[list[Entry]] = []
    room = 0
    for entry in tensors:
        if not shards or entry.nbytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(entry)
        room -= entry.nbytes
    return shards


def generation_config() -> dict[str, Any]:
    """The hub's `generation_config.json`: sample, and stop at <|return|>, <|endoftext|> and <|call|>."""
    return {
        "bos_token_id": _BOS_TOKEN,
        "do_sample": True,
        "eos_token_id": list(EOS_TOKENS),
        "pad_token_id": PAD_TOKEN,
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write one JSON file, two spaces deep, readable by all and synced to the disk."""
    with _disk_errors(path), path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
        _finish(file.fileno())


def _index(names: list[str], shards: list[list[Entry]]) -> dict[str, Any]:
    weight_map = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
    total = sum(entry.nbytes for shard in shards for entry in shard)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


def _write_shard(path: Path, entries: list[Entry], progress: Progress | None) -> None:
    with _disk_errors(path), path.open("wb", buffering=0) as file:
        _write(file.fileno(), memoryview(_header(entries)))
        for entry in entries:
            _write(file.fileno(), _bytes_of(entry), progress)
        _finish(file.fileno())


def _header(entries: list[Entry]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.nbytes
        dtype = _DTYPE_NAMES[entry.dtype]
        header[entry.name] = {"dtype": dtype, "shape": list(entry.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _bytes_of(entry: Entry) -> memoryview:
    tensor = entry.make()
    made = (tuple(tensor.shape), tensor.dtype)
    if made != (entry.shape, entry.dtype):
        raise CheckpointError(f"{entry.name} was announced as {entry.shape} {entry.dtype} and made as {made}.")
    flat = tensor.detach().contiguous().cpu().view(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]  # an ndarray is a buffer; its stubs say so from 3.12 on


def _write(descriptor: int, content: memoryview, progress: Progress | None = None) -> None:
    while content:
        written = os.write(descriptor, content[:_WRITE_BYTES])
        content = content[written:]
        if progress:
            progress(written)


def _finish(descriptor: int) -> None:
    os.fchmod(descriptor, 0o644)
    os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into this program's errors."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno in _FULL:
            raise DoesNotFitError(
                f"No room for {where}: {error.strerror}. Free some, or write to another disk."
            ) from error
        raise CheckpointError(
            f"Cannot write {where}: {error.strerror}. Choose a folder that can be written."
        ) from error
