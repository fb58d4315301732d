"""Small random checkpoints, written once a run; and which tests may run side by side."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from gptoss_dist.collector import uncollected
from gptoss_dist.model.synth import synthesize
from gptoss_dist.model.writer import Entry, write_checkpoint
from gptoss_dist.shapes import Rope, Shape, TensorSpec

SMALL = Shape(
    layers=4,
    hidden=64,
    intermediate=480,  # 15 groups: 8 and 7 over two ranks; 4, 4, 4, 3 over four
    experts=8,
    experts_per_token=2,
    heads=16,
    kv_heads=8,
    head_dim=16,
    vocab=512,
    sliding_window=16,
    max_position=256,
    rope=Rope(original_max_position=8),
)
WIDE = dataclasses.replace(SMALL, layers=2, intermediate=2880, experts=4)
"""90 groups, as in the real models: 23, 23, 23, 21 over four ranks."""
_SHARD_BYTES = 400_000

Maker = Callable[..., Path]


def lively_tensor(spec: TensorSpec) -> torch.Tensor:
    """Values that make every part of the model count: logits of a few units, each token its own experts."""
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(spec.name.encode()).digest()[:6], "big"))
    if spec.dtype == "uint8":
        low, high = (0, 256) if spec.name.endswith("_blocks") else (120, 124)
        return torch.randint(low, high, spec.shape, dtype=torch.uint8, generator=generator)
    std = 1.0 if spec.name.endswith(("sinks", "embed_tokens.weight")) else 0.2
    mean = 1.0 if spec.name.endswith("norm.weight") else 0.0
    return torch.empty(spec.shape).normal_(mean, std, generator=generator).bfloat16()


def write_lively(folder: Path, shape: Shape, dense: bool = False, shard_bytes: int = _SHARD_BYTES) -> Path:
    entries = [
        Entry(spec.name, spec.shape, getattr(torch, spec.dtype), partial(lively_tensor, spec))
        for spec in shape.tensors(dense)
    ]
    config = {**shape.hub_config(dense), "pad_token_id": None, "eos_token_id": None}  # theirs are out of the vocabulary
    write_checkpoint(folder, config, entries, shard_bytes)
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """All modules and items stay to the end: without this the collector walks them again and again."""
    with uncollected():
        return (yield)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For --dist=loadfile: a module stays together, for its servers and ranks; and so do all that share a SLURM, or
    this machine's GPUs.
    """
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0])
            return file.parent.name if file.parent.name in ("slurm", "gpu") else str(file)

    return Together(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models are quicker on one thread, here and in the programs that tests start: several threads of a rank wait
    for each other in every operation wherever ranks are more than cores.
    """
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """`make_checkpoint(shape, dense)`: the folder of a checkpoint with a vocabulary of its own and no tokenizer."""
    made: dict[tuple[Shape, bool], Path] = {}

    def make(shape: Shape = SMALL, dense: bool = False) -> Path:
        if (shape, dense) not in made:
            folder = tmp_path_factory.mktemp("checkpoint") / ("dense" if dense else "packed")
            made[shape, dense] = write_lively(folder, shape, dense)
        return made[shape, dense]

    return make


@pytest.fixture(scope="session")
def random_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of the size `tiny`, with the real vocabulary and tokenizer."""
    folder = tmp_path_factory.mktemp("random") / "toy"
    synthesize("tiny", folder, seed=3, device="cpu")
    return folder
