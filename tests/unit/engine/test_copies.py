from __future__ import annotations

import torch

from gptoss_dist.engine.copies import copy_all


def test_sources_of_any_type_and_one_row_for_many_reach_their_targets():
    sources = [torch.arange(3), torch.tensor([[1, 2]], dtype=torch.int32), torch.rand(2, 4), torch.tensor([9])]
    targets = [torch.zeros(3).long(), torch.zeros(5, 2).int(), torch.zeros(4, 8)[::2, ::2][:2], torch.zeros(0).long()]
    beside = torch.zeros(4, 8)
    targets[2] = beside[::2, ::2]
    copy_all(zip(sources, targets, strict=True))
    assert targets[0].tolist() == [0, 1, 2]
    assert targets[1].tolist() == [[1, 2]] * 5
    assert torch.equal(targets[2], sources[2])
    assert not beside[1::2].any()
    assert not beside[:, 1::2].any()


def test_nothing_is_copied_of_nothing():
    copy_all([])
    copy_all([(torch.zeros(0), torch.zeros(0))])
