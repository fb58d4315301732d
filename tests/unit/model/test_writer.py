from __future__ import annotations

import json
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import GenerationConfig

from gptoss_dist.errors import CheckpointError
from gptoss_dist.model.writer import Entry, new_folder, plan_shards, write_checkpoint


def entry(name: str, tensor: torch.Tensor) -> Entry:
    return Entry(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)


def some_tensors() -> dict[str, torch.Tensor]:
    return {
        "a.weight": torch.randn(8, 16).bfloat16(),
        "b.blocks": torch.randint(0, 256, (4, 3, 16), dtype=torch.uint8),
        "c.odd": torch.arange(7, dtype=torch.uint8),
        "d.float": torch.randn(5),
        "e.transposed": torch.randn(6, 4).bfloat16().T,
        "f.scalar": torch.tensor(3.5),
    }


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_written_is_what_safetensors_reads(tmp_path: Path, workers: int) -> None:
    tensors = some_tensors()
    folder = tmp_path / "deep" / "out"
    seen: list[int] = []
    lock = threading.Lock()

    def progress(count: int) -> None:
        with lock:
            seen.append(count)

    entries = [entry(name, tensor) for name, tensor in tensors.items()]
    names = write_checkpoint(folder, {"model_type": "gpt_oss"}, entries, 256, workers, progress)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    assert set(index["weight_map"].values()) == set(names)
    for name, tensor in tensors.items():
        with safe_open(folder / index["weight_map"][name], "pt") as file:
            assert torch.equal(file.get_tensor(name), tensor)
            assert file.metadata() == {"format": "pt"}
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert index["metadata"]["total_size"] == sum(seen) == total
    assert json.loads((folder / "config.json").read_text()) == {"model_type": "gpt_oss"}


def test_transformers_reads_the_generation_config(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "out", {}, [entry("a", torch.zeros(2))], 64)
    config = GenerationConfig.from_pretrained(tmp_path / "out")
    assert config.eos_token_id == [200002, 199999, 200012]
    assert config.pad_token_id == 199999


def test_files_can_be_read_by_others_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "out", {}, [entry("a", torch.zeros(2))], 64)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {0o644}


def test_shards_are_planned_in_order_and_within_the_limit() -> None:
    sizes = [10, 20, 30, 100, 5, 60]
    entries = [entry(str(size), torch.zeros(size, dtype=torch.uint8)) for size in sizes]
    planned = [[item.nbytes for item in shard] for shard in plan_shards(entries, 60)]
    assert planned == [[10, 20, 30], [100], [5], [60]]
    assert plan_shards([], 60) == []


def test_a_tensor_is_made_only_when_the_one_before_is_written(tmp_path: Path) -> None:
    written: list[int] = []

    def make(number: int) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            assert sum(written) == 16 * number
            return torch.zeros(4)

        return run

    entries = [Entry(str(number), (4,), torch.float32, make(number)) for number in range(5)]
    write_checkpoint(tmp_path / "out", {}, entries, 32, progress=written.append)


def test_an_empty_folder_is_taken_and_a_full_one_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_checkpoint(tmp_path / "empty", {}, [entry("a", torch.zeros(2))], 64)
    with pytest.raises(CheckpointError, match="not an empty folder"):
        write_checkpoint(tmp_path / "empty", {}, [entry("a", torch.zeros(2))], 64)


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="Cannot write"):
        write_checkpoint(tmp_path / "file" / "out", {}, [], 64)


def test_a_tensor_made_otherwise_than_announced_is_refused(tmp_path: Path) -> None:
    wrong = Entry("a.weight", (2, 2), torch.bfloat16, lambda: torch.zeros(2, 3, dtype=torch.bfloat16))
    with pytest.raises(CheckpointError, match="was announced"):
        write_checkpoint(tmp_path / "out", {}, [wrong], 64)
    assert list(tmp_path.iterdir()) == []


ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from gptoss_dist.errors import DoesNotFitError
from gptoss_dist.model.writer import Entry, write_checkpoint

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
entries = [Entry(str(number), (2048,), torch.float32, lambda: torch.zeros(2048)) for number in range(4)]
try:
    write_checkpoint(Path(sys.argv[1]), {}, entries, 8192, int(sys.argv[2]))
except DoesNotFitError as error:
    print(error)
"""
"""In a process of its own: the limit would also hold for the file that this test's output may go to."""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path: Path, workers: int) -> None:
    command = [sys.executable, "-W", "ignore", "-c", ON_A_FULL_DISK, str(tmp_path / "out"), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "No room for" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_block_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
