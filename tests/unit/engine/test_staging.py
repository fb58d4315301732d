from __future__ import annotations

import torch

from gptoss_dist.engine.staging import ALIGNMENT, Readback, Staging

CPU = torch.device("cpu")


def test_parts_of_every_type_arrive_as_they_were():
    staging = Staging(CPU)
    for count in (1, 3, 40):
        parts = [
            (torch.int32, [-1] * count),
            (torch.int64, [2**63 - 1, -5, 7][:count]),
            (torch.float32, [0.5, 1e-36]),
            (torch.int64, []),
            (torch.int32, list(range(count))),
            (torch.int64, [count]),
        ]
        sent = staging.send(parts)
        assert [tensor.dtype for tensor in sent] == [dtype for dtype, _ in parts]
        for tensor, (dtype, values) in zip(sent, parts, strict=True):
            assert torch.equal(tensor, torch.tensor(values, dtype=dtype))
            assert tensor.storage_offset() * dtype.itemsize % ALIGNMENT == 0


def test_what_was_sent_stays_when_more_is_sent():
    staging = Staging(CPU)
    sent = [staging.send([(torch.int64, [number] * 8)])[0] for number in range(5)]
    assert [tensor.tolist() for tensor in sent] == [[number] * 8 for number in range(5)]


def test_what_is_read_back_is_what_it_was_when_the_copy_began():
    tokens, values = torch.tensor([3, -1]), torch.tensor([[0.5], [2.0]])
    readback = Readback(tokens, values)
    tokens.zero_()
    found = readback.wait()
    assert [one.tolist() for one in found] == [[3, -1], [[0.5], [2.0]]]
