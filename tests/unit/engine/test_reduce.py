from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from gptoss_dist.engine.reduce import BySize, choose_reducer
from gptoss_dist.kernels.all_reduce_reference import LocalReducer, ProcessGroupReducer
from gptoss_dist.kernels.reducer import Norm, Routes
from gptoss_dist.kernels.step_kernels import step_kernels
from gptoss_dist.runtime.dist import RankGroup

CPU = torch.device("cpu")
ALONE = RankGroup(0, 0, 1, CPU)


class Named(LocalReducer):
    """Says who was asked, in the first value."""

    def __init__(self, name: float) -> None:
        super().__init__()
        self._name = name

    def reduce(self, partial_TH):
        return torch.full_like(partial_TH, self._name)

    def reduce_add_norm(self, partial, norm):
        return torch.full_like(norm.residual_TH, self._name)


@pytest.mark.parametrize(("tokens", "wanted"), [(1, 1.0), (4, 1.0), (5, 2.0)])
def test_few_tokens_go_one_way_and_many_another(tokens, wanted):
    both, rows = BySize(Named(1.0), 4, Named(2.0)), torch.zeros(tokens, 3)
    assert (both.reduce(rows) == wanted).all()
    norm = Norm(rows, torch.ones(3), 1e-5)
    assert (both.reduce_add_norm(rows, norm) == wanted).all()
    routes = Routes(rows.repeat(2, 1), torch.zeros(2 * tokens), 1)
    assert (both.reduce_add_norm(routes, norm) == wanted).all()


def test_one_rank_sums_nothing():
    chosen = choose_reducer(step_kernels("reference"), ALONE, None, 4, 8, torch.float32, CPU)
    assert isinstance(chosen.reducer, LocalReducer)
    assert chosen.reason == ""


def test_ranks_on_a_cpu_sum_through_their_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        chosen = choose_reducer(step_kernels("reference"), ALONE, dist.group.WORLD, 4, 8, torch.float32, CPU)
        assert isinstance(chosen.reducer, ProcessGroupReducer)
        assert chosen.reason == "sums over ranks through gloo"
        assert torch.equal(chosen.reducer.reduce(torch.ones(2, 8)), torch.ones(2, 8))
    finally:
        dist.destroy_process_group()
