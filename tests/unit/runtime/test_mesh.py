from __future__ import annotations

import pytest
import torch

from gptoss_dist.errors import WorldSizeError
from gptoss_dist.runtime.dist import RankGroup
from gptoss_dist.runtime.mesh import make_ranks, place


def test_ranks_of_a_replica_are_neighbours():
    assert [place(rank, 2) for rank in range(6)] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_one_rank_alone_needs_no_mesh():
    ranks = make_ranks(RankGroup(0, 0, 1, torch.device("cpu")), dp=1, tp=1)
    assert (ranks.dp_rank, ranks.tp_rank, ranks.mesh, ranks.tp_group) == (0, 0, None, None)
    assert ranks.leads_replica


def test_degrees_that_need_more_ranks():
    with pytest.raises(WorldSizeError, match="dp=2 × tp=2 needs 4 ranks, and 1 were started"):
        make_ranks(RankGroup(0, 0, 1, torch.device("cpu")), dp=2, tp=2)
