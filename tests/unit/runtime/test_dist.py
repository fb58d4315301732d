from __future__ import annotations

import os

import pytest
import torch

from gptoss_dist.errors import RankError
from gptoss_dist.launcher.env import RankEnv
from gptoss_dist.runtime.dist import cuda_index, record_no_flights, start


def rank(local_rank: int, source="torchrun") -> RankEnv:
    return RankEnv(local_rank, local_rank, 4, 4, source)


def test_one_rank_needs_no_process_group():
    group = start("cpu", None)
    assert (group.rank, group.world_size, group.device) == (0, 1, torch.device("cpu"))
    assert group.broadcast_object({"a": 1}) == {"a": 1}
    assert group.all_gather_object("a") == ["a"]
    group.barrier()
    assert not torch.distributed.is_initialized()
    group.stop()


def test_a_rank_takes_the_gpu_of_its_number():
    assert cuda_index(None, 1, {}) == 0
    assert cuda_index(rank(3), 4, {}) == 3


def test_slurm_may_show_each_task_only_its_own_gpu():
    assert cuda_index(rank(3, "slurm"), 1, {"SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "3"}) == 0


def test_slurm_tasks_may_not_share_one_gpu():
    with pytest.raises(RankError, match="LOCAL_RANK=3 has no GPU: 1 is visible"):
        cuda_index(rank(3, "slurm"), 1, {"SLURM_GPUS_ON_NODE": "1"})


@pytest.mark.parametrize(
    ("visible", "environ", "message"),
    [
        (2, {}, r"LOCAL_RANK=2 has no GPU: 2 are visible on this machine\. "),
        (1, {}, r"LOCAL_RANK=2 has no GPU: 1 is visible"),
        (0, {"CUDA_VISIBLE_DEVICES": ""}, r"0 are visible on this machine \(CUDA_VISIBLE_DEVICES=\)"),
        (
            1,
            {"SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "0"},
            r"1 is visible on this machine \(CUDA_VISIBLE_DEVICES=0\)",
        ),
    ],
)
def test_more_ranks_than_gpus(visible: int, environ: dict[str, str], message: str):
    with pytest.raises(RankError, match=message):
        cuda_index(rank(2), visible, environ)


@pytest.mark.parametrize("name", ["TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"])
def test_nccl_records_its_calls_only_where_the_user_wants_it(name, monkeypatch):
    for other in ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "2000")
    record_no_flights()
    assert {one: os.environ[one] for one in os.environ if one.endswith("_BUFFER_SIZE")} == {name: "2000"}
    monkeypatch.delenv(name)
    record_no_flights()
    assert os.environ["TORCH_FR_BUFFER_SIZE"] == "0"
    monkeypatch.delenv("TORCH_FR_BUFFER_SIZE")
