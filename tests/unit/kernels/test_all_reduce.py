from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from runtime_ranks import Ranks

from gptoss_dist.kernels.all_reduce_reference import LocalReducer, ProcessGroupReducer
from gptoss_dist.kernels.norm_reference import add_norm
from gptoss_dist.kernels.reducer import Norm, Routes
from gptoss_dist.runtime.dist import RankGroup
from gptoss_dist.runtime.watch import Watch

EPSILON = 1e-5


def random_step(tokens=3, hidden=16, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(tokens, hidden, generator=generator).to(dtype) for _ in range(2)]
    return *made, torch.rand(hidden, generator=generator)


def test_one_rank_adds_to_the_residual_and_norms():
    partial_TH, residual_TH, weight_H = random_step(dtype=torch.bfloat16)
    wanted_residual = residual_TH.clone()
    wanted = add_norm(wanted_residual, partial_TH, weight_H, EPSILON)
    reducer = LocalReducer()
    found = reducer.reduce_add_norm(partial_TH, Norm(residual_TH, weight_H, EPSILON))
    assert torch.equal(found, wanted)
    assert torch.equal(residual_TH, wanted_residual)
    assert reducer.reduce(partial_TH) is partial_TH


def sum_over_ranks(watch: Watch, group: RankGroup) -> None:
    assert dist.group.WORLD is not None
    for dtype, wide in ((torch.float32, True), (torch.bfloat16, True), (torch.bfloat16, False)):
        reducer = ProcessGroupReducer(dist.group.WORLD, wide=wide)
        partials = [random_step(dtype=dtype, seed=rank)[0] for rank in range(3)]
        _, residual_TH, weight_H = random_step(dtype=dtype, seed=9)
        mine_TH = partials[group.rank]
        exact_TH = sum(part.double() for part in partials)  # a reducer may overwrite its own
        bound = {"rtol": 0, "atol": (8 if wide else 16) * torch.finfo(dtype).eps}
        torch.testing.assert_close(reducer.reduce(mine_TH.clone()), exact_TH.to(dtype), **bound)
        wanted_residual = residual_TH.double() + exact_TH
        normed_TH = reducer.reduce_add_norm(mine_TH, Norm(residual_TH, weight_H, EPSILON))
        torch.testing.assert_close(residual_TH.double(), wanted_residual, **bound)
        assert torch.equal(normed_TH, add_norm(residual_TH, None, weight_H, EPSILON))
        copies = group.all_gather_object((residual_TH, normed_TH))
        assert all(torch.equal(a, b) for copy in copies for a, b in zip(copy, copies[0], strict=True))


def sum_routes_over_ranks(watch: Watch, group: RankGroup) -> None:
    """Every rank has two of six experts, and rows of the others' routes that no one may look at."""
    assert dist.group.WORLD is not None
    generator = torch.Generator().manual_seed(4)
    index_TK = torch.stack([torch.randperm(6, generator=generator)[:3] for _ in range(5)])
    rows_TKH = torch.randn(5, 3, 16, generator=generator)
    residual_TH, weight_H = torch.randn(5, 16, generator=generator), torch.rand(16, generator=generator)
    mine_P = index_TK.reshape(-1) - 2 * group.rank
    rows_PH = rows_TKH.reshape(15, 16).clone()
    rows_PH[(mine_P < 0) | (mine_P >= 2)] = torch.nan
    wanted = residual_TH.double() + rows_TKH.double().sum(dim=1)
    reducer = ProcessGroupReducer(dist.group.WORLD)
    normed_TH = reducer.reduce_add_norm(Routes(rows_PH, mine_P, 2), Norm(residual_TH, weight_H, EPSILON))
    torch.testing.assert_close(residual_TH.double(), wanted, rtol=0, atol=1e-6)
    assert torch.equal(normed_TH, add_norm(residual_TH, None, weight_H, EPSILON))


@pytest.mark.multi
def test_three_ranks_hold_the_same_sum(tmp_path: Path):
    ranks = Ranks(3, sum_over_ranks, tmp_path)
    assert ranks.statuses() == [0, 0, 0], ranks.printed()


@pytest.mark.multi
def test_each_rank_sums_the_routes_of_its_experts(tmp_path: Path):
    ranks = Ranks(3, sum_routes_over_ranks, tmp_path)
    assert ranks.statuses() == [0, 0, 0], ranks.printed()
