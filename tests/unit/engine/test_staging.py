from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

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
    tensors = [
        torch.tensor([[0.5], [2.0], [3.0]]),
        torch.tensor([3, -1]),
        torch.zeros(2, 0),
        torch.arange(12).view(3, 4)[:, 1:3],
        torch.tensor([True, False, True]),
    ]
    wanted = [tensor.clone() for tensor in tensors]
    readback = Readback(*tensors)
    for tensor in tensors:
        tensor.zero_()
    for found, tensor in zip(readback.wait(), wanted, strict=True):
        assert torch.equal(found, tensor)
        assert found.dtype == tensor.dtype


def test_one_tensor_is_read_back_as_it_is():
    tokens = torch.tensor([5, 2**60, -1])
    readback = Readback(tokens)
    tokens.zero_()
    assert readback.is_here(), "on a CPU at once"
    assert [one.tolist() for one in readback.wait()] == [[5, 2**60, -1]]


def test_all_that_is_read_back_comes_in_one_copy():
    copies = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            copies.extend([func] * (func is torch.ops.aten.copy_.default))
            return func(*args, **(kwargs or {}))

    with Watch():
        Readback(torch.zeros(3), torch.zeros(2, dtype=torch.int64), torch.zeros(3, 5)).wait()
    assert len(copies) == 1
