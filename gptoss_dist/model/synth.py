"""Random checkpoints of the real shapes, for measuring and testing without weights.

What matters for speed is as in the real model: the tensors and their layout, all experts chosen equally often (router
weights N(0, 0.02)), activations of ordinary size (weights of standard deviation 0.02, norms of one, sinks N(0, 1)).
The text that such a model writes means nothing.

Each tensor has its own generator, seeded with the seed and its name: the same seed gives the same bytes on the same
kind of device, in whatever order and by however many workers the tensors are made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from gptoss_dist.errors import ConfigError, DoesNotFitError
from gptoss_dist.log import get_logger
from gptoss_dist.model.writer import Entry, new_folder, write_files
from gptoss_dist.shapes import SIZES, Shape, TensorSpec

_log = get_logger(__name__)

SHARD_BYTES = 2_400_000_000
"""One layer of the 120b model a shard, and one shard for embedding and output layer: 37 files."""

_WEIGHT_STD = 0.02
_SINK_STD = 1.0
# Of 256 scales, so many are 2^-9, 2^-8, 2^-7, 2^-6. Random E2M1 codes have a mean square of 68.5 / 8, so the weights
# have sqrt(68.5 / 8 * sum(count / 256 * scale^2)) = 0.0201 as standard deviation.
_SCALE_COUNTS = {127 - 9: 88, 127 - 8: 64, 127 - 7: 80, 127 - 6: 24}
_BESIDES_TENSORS = 64_000_000  # tokenizer, index and headers, generously
_MOST_WORKERS = 8


def synthesize(
    size: str,
    out: Path,
    seed: int = 0,
    device: str | None = None,
    layers: int | None = None,
    experts: int | None = None,
    dense: bool = False,
) -> dict[str, Any]:
    """Write a random checkpoint with its tokenizer into `out` and say what was written, in bytes and seconds.

    `size` is a key of SIZES; `layers` and `experts` replace its numbers; `dense` writes bf16 experts in transformers'
    own layout instead of MXFP4; `device` makes the numbers (a GPU if there is one). Raises ConfigError for an
    impossible shape, DoesNotFitError if the disk has no room, CheckpointError if `out` is taken.
    """
    from gptoss_dist.model.tokenizer import build_tokenizer

    shape = synthetic_shape(size, layers, experts)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    total = shape.checkpoint_bytes(dense)
    _check_room(out, total + _BESIDES_TENSORS)
    _log.info("synth: %s, %.1f GB of random weights made on %s, to %s", size, total / 1e9, device, out)
    started = time.monotonic()
    with new_folder(out) as folder, _progress_bar() as bar:
        build_tokenizer(folder)
        task = bar.add_task(f"synth {size}", total=total)
        config = {**shape.hub_config(dense), "_name_or_path": f"random weights in the shape of gpt-oss {size}"}
        files = write_files(
            folder,
            config,
            random_entries(shape, seed, device, dense),
            SHARD_BYTES,
            _workers(),
            partial(bar.advance, task),
        )
    seconds = time.monotonic() - started
    return {
        "folder": str(out.absolute()),
        "size": size,
        "layers": shape.layers,
        "experts": shape.experts,
        "layout": "bf16" if dense else "mxfp4",
        "files": len(files),
        "bytes": total,
        "seed": seed,
        "device": device,
        "seconds": round(seconds, 1),
        "gb_per_second": round(total / 1e9 / seconds, 2),
    }


def synthetic_shape(size: str, layers: int | None = None, experts: int | None = None) -> Shape:
    """The shape of a size with another number of layers or experts; ConfigError if there is no such model."""
    if size not in SIZES:
        raise ConfigError(f"synth: there is no size {size!r}. There is: {', '.join(SIZES)}.")
    shape = SIZES[size]
    shape = dataclasses.replace(shape, layers=shape.layers if layers is None else layers)
    shape = dataclasses.replace(shape, experts=shape.experts if experts is None else experts)
    if problem := shape.problem():
        raise ConfigError(f"synth: {problem}.")
    return shape


def random_entries(shape: Shape, seed: int, device: str, dense: bool = False) -> Iterator[Entry]:
    """The tensors of a random checkpoint, each made when it is asked for."""
    for spec in shape.tensors(dense):
        yield Entry(spec.name, spec.shape, getattr(torch, spec.dtype), _maker(spec, seed, device))


def _maker(spec: TensorSpec, seed: int, device: str) -> Callable[[], torch.Tensor]:
    return partial(random_tensor, spec, seed, device)


def random_tensor(spec: TensorSpec, seed: int, device: str) -> torch.Tensor:
    """One tensor of a random checkpoint, by its name: blocks, scales, norm, sinks, or a weight or bias."""
    digest = hashlib.sha256(f"{seed}:{spec.name}".encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "little"))
    if spec.name.endswith("_blocks"):
        return _random_bytes(spec.shape, generator)
    if spec.name.endswith("_scales"):
        levels = [byte for byte, count in _SCALE_COUNTS.items() for _ in range(count)]
        table = torch.tensor(levels, dtype=torch.uint8, device=device)
        return table[_random_bytes(spec.shape, generator).int()]
    tensor = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device=device)
    if spec.name.endswith("norm.weight"):
        return tensor.fill_(1.0)
    std = _SINK_STD if spec.name.endswith("sinks") else _WEIGHT_STD
    return tensor.normal_(0.0, std, generator=generator)


def _random_bytes(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Uniform bytes, drawn eight at a time."""
    count = math.prod(shape)
    words = torch.empty(-(-count // 8), dtype=torch.int64, device=generator.device)
    words.random_(-(2**63), None, generator=generator)
    return words.view(torch.uint8)[:count].view(shape)


def _check_room(out: Path, needed: int) -> None:
    """DoesNotFitError if the disk below `out` has less than `needed` bytes free."""
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise DoesNotFitError(
            f"synth needs {needed / 1e9:.1f} GB in {out}, and {existing} has {free / 1e9:.1f} GB free. "
            "Name a larger disk with out=…, or fewer layers or experts."
        )


def _workers() -> int:
    return min(_MOST_WORKERS, os.cpu_count() or 1)


def _progress_bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
