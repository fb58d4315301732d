from __future__ import annotations

import torch

from gptoss_dist.engine.device_tables import DeviceTables, Updates
from gptoss_dist.engine.request import Request, Sampling
from gptoss_dist.engine.sequence import Sequence
from gptoss_dist.engine.step_plan import Chunk

SLOTS, PAGES = 3, 6


def running(slot: int, full: list[int], sliding: list[int], arrival: int = 0) -> Sequence:
    sequence = Sequence(Request(str(arrival), (1, 2), Sampling(4)), arrival)
    sequence.slot, sequence.full_table, sequence.sliding_table = slot, full, sliding
    return sequence


def tables() -> DeviceTables:
    return DeviceTables(SLOTS, PAGES, torch.device("cpu"))


def updates(on_device: DeviceTables, *sequences: Sequence) -> Updates:
    return on_device.updates([Chunk(sequence, 0, 1, samples=True) for sequence in sequences])


def rows(on_device: DeviceTables, *sequences: Sequence) -> list[list[list[int]]]:
    new = updates(on_device, *sequences)
    numbers = [torch.tensor(one, dtype=torch.int64) for one in (new.newcomers, new.places)]
    slots = torch.tensor([sequence.slot for sequence in sequences])
    pages = torch.tensor(new.pages, dtype=torch.int32)
    return [one.tolist() for one in on_device.rows(new.width, *numbers, pages, slots)]


def test_rows_are_the_tables_of_those_in_the_step_padded():
    on_device = tables()
    one, other = running(2, [4, 5, 6], [-1, 8, 9]), running(0, [7], [3], arrival=1)
    assert rows(on_device, one, other) == [[[4, 5, 6], [7, -1, -1]], [[-1, 8, 9], [3, -1, -1]]]
    one.full_table.append(1)
    one.sliding_table[:] = [-1, -1, 9, 2]
    assert rows(on_device, other) == [[[7]], [[3]]]
    assert rows(on_device, one) == [[[4, 5, 6, 1]], [[-1, -1, 9, 2]]]


def test_only_what_is_new_is_sent():
    on_device, one = tables(), running(1, [4, 5], [6, 7])
    assert updates(on_device, one) == Updates([1], [6, 7, 24, 25], [4, 5, 6, 7], 2)
    assert updates(on_device, one) == Updates([], [], [], 2)
    one.full_table.append(8)
    one.sliding_table[:] = [-1, 7, 9]
    assert updates(on_device, one) == Updates([], [8, 26, 24], [8, 9, -1], 3)
    assert updates(on_device, one) == Updates([], [], [], 3)


def test_a_page_that_was_let_go_before_it_was_sent_is_sent_once():
    assert updates(tables(), running(0, [4, 5], [-1, 7])) == Updates([0], [0, 1, 18, 19], [4, 5, -1, 7], 2)


def test_a_slot_begins_anew_with_another_sequence_and_with_one_that_gave_way():
    on_device, one = tables(), running(1, [4, 5], [6, 7])
    rows(on_device, one)
    other = running(1, [8], [9], arrival=1)
    assert rows(on_device, other, running(0, [0, 1], [0, 1])) == [[[8, -1], [0, 1]], [[9, -1], [0, 1]]]
    other.preemptions, other.full_table, other.sliding_table = 1, [2], [3]
    assert rows(on_device, other) == [[[2]], [[3]]]
