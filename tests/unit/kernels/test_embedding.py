from __future__ import annotations

from itertools import pairwise

import torch

from gptoss_dist.kernels.embedding_reference import embed


def test_shards_sum_to_the_whole_embedding_and_padding_is_zero():
    weight_VH = torch.randn(11, 6)
    ids_T = torch.tensor([0, 10, -1, 4, 5, 3])
    edges = [0, 4, 5, 11]
    total = sum(embed(ids_T, weight_VH[low:high], low) for low, high in pairwise(edges))
    wanted = weight_VH[ids_T.clamp(min=0)] * (ids_T >= 0)[:, None]
    assert torch.equal(total, wanted)


def test_rows_of_other_ranks_are_zero_even_where_the_weight_is_not_finite():
    weight_VH = torch.full((2, 3), torch.nan)
    assert torch.equal(embed(torch.tensor([7, -1]), weight_VH, 3), torch.zeros(2, 3))
