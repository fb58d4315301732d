from __future__ import annotations

import pytest

from gptoss_dist.devices import default_ranks, visible_gpus


@pytest.fixture
def four_gpus(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm", "nvidia-modeset", "null"):
        (tmp_path / name).touch()
    (tmp_path / "nvidia-caps").mkdir()
    return tmp_path


def test_device_files_are_counted(four_gpus, tmp_path):
    assert visible_gpus({}, four_gpus) == 4
    (tmp_path / "none").mkdir()
    assert visible_gpus({}, tmp_path / "none") == 0
    assert visible_gpus({}, tmp_path / "no-such-folder") == 0


def test_ten_gpus_are_ten(tmp_path):
    for index in range(10):
        (tmp_path / f"nvidia{index}").touch()
    (tmp_path / "nvidia10").touch()
    assert visible_gpus({}, tmp_path) == 11


@pytest.mark.parametrize(
    ("variable", "count"),
    [
        ("", 0),
        (" ", 0),
        ("-1", 0),
        ("NoDevFiles", 0),
        ("0", 1),
        ("3", 1),
        ("0,1", 2),
        (" 2 , 3 ", 2),
        ("0,1,2,3", 4),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", 1),
        ("MIG-1a2b,GPU-3c4d", 2),
        # As in CUDA's documentation: the first entry that is invalid hides itself and all that follow.
        ("0,-1,1", 1),
        ("4", 0),
        ("0,7,1", 1),
        ("0,,1", 1),
        ("2,x", 1),
    ],
)
def test_the_environment_hides_gpus_as_cuda_reads_it(four_gpus, variable, count):
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": variable}, four_gpus) == count


def test_the_environment_shows_none_that_are_not_there(tmp_path):
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "0,1"}, tmp_path) == 0
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"}, tmp_path) == 0


def test_the_process_environment_is_the_default(monkeypatch, four_gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    assert visible_gpus(folder=four_gpus) == 2


def test_ranks_where_nobody_says_how_many():
    assert default_ranks(4, sharded=True) == 4
    assert default_ranks(4, sharded=False) == 4
    assert default_ranks(0, sharded=True) == 2
    assert default_ranks(0, sharded=False) == 1
