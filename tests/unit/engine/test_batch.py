"""Batches of random plans, whose tensors are compared with what the scheduler's own lists say."""

from __future__ import annotations

import random

import torch

from gptoss_dist.engine.batch import BatchBuilder
from gptoss_dist.engine.pages import PagePool
from gptoss_dist.engine.request import Request, Sampling
from gptoss_dist.engine.scheduler import Scheduler

PAGE, RUNNING, PAGES = 4, 5, 20
CPU = torch.device("cpu")


def padded(tables: list[list[int]], width: int) -> list[list[int]]:
    return [[*table, *[-1] * (width - len(table))] for table in tables]


def verify(builder: BatchBuilder, chunks: list, last: dict[int, int]) -> int:
    """`last`: the token chosen last in each slot. Returns how many chunks were fed back."""
    batch = builder.build(chunks)
    fed = [chunk for chunk in chunks if chunk.sequence.fed]
    rest = chunks[len(fed) :]
    assert fed == chunks[: len(fed)]
    assert batch.decoding == len(fed)
    assert batch.decode_only == (not rest)
    tokens = [last[chunk.sequence.slot] for chunk in fed]
    for chunk in rest:
        tokens += chunk.sequence.tokens[chunk.start : chunk.end]
    assert batch.ids_T.tolist() == tokens
    places = [(chunk, place) for chunk in chunks for place in range(chunk.start, chunk.end)]
    assert batch.positions_T.tolist() == [place for _, place in places]
    width = max(len(chunk.sequence.full_table) for chunk in chunks)
    for kind, slots_T, table_SN, table_CN in (
        ("full_table", batch.full_slots_T, batch.full_table_SN, batch.full_table_CN),
        ("sliding_table", batch.sliding_slots_T, batch.sliding_table_SN, batch.sliding_table_CN),
    ):
        tables = [getattr(chunk.sequence, kind) for chunk in chunks]
        wanted = [getattr(chunk.sequence, kind)[place // PAGE] * PAGE + place % PAGE for chunk, place in places]
        assert slots_T.tolist() == wanted
        assert torch.cat((table_SN, table_CN)).tolist() == padded(tables, width)
    assert batch.first_C.tolist() == [sum(one.count for one in rest[:n]) for n in range(len(rest))]
    assert batch.count_C.tolist() == [chunk.count for chunk in rest]
    assert batch.start_C.tolist() == [chunk.start for chunk in rest]
    assert batch.longest == max((chunk.count for chunk in rest), default=0)
    ends = [sum(one.count for one in chunks[: number + 1]) - 1 for number in range(len(chunks))]
    sampling = [(chunk, end) for chunk, end in zip(chunks, ends, strict=True) if chunk.samples]
    assert batch.sampled.tolist() == [end for _, end in sampling]
    assert batch.target_R.tolist() == [chunk.sequence.slot for chunk, _ in sampling]
    requests = [chunk.sequence.request for chunk, _ in sampling]
    assert batch.draw.temperature_R.tolist() == [one.sampling.temperature for one in requests]
    assert batch.draw.seed_R.tolist() == [one.sampling.seed for one in requests]
    assert batch.draw.position_R.tolist() == [chunk.sequence.length for chunk, _ in sampling]
    chosen = [1000 + chunk.sequence.slot + 7 * chunk.end for chunk, _ in sampling]
    builder.feed(batch, torch.tensor(chosen, dtype=torch.int64))
    last.update(zip((chunk.sequence.slot for chunk, _ in sampling), chosen, strict=True))
    return len(fed)


def test_batches_of_random_plans_are_what_the_scheduler_says():
    chance = random.Random(3)
    scheduler = Scheduler(PagePool(PAGES, PAGE), PagePool(16, PAGE), window=6, step_tokens=14, max_running=RUNNING)
    builder = BatchBuilder(PAGE, RUNNING, PAGES, CPU)
    last: dict[int, int] = {}
    number = fed = 0
    flights: list[list[int]] = []
    for _ in range(600):
        if len(scheduler.waiting) < 2:
            number += 1
            sampling = Sampling(chance.choice((1, 6, 20)), chance.choice((0.0, 0.5)), seed=chance.randrange(2**63))
            scheduler.add(Request(str(number), tuple(chance.randrange(50) for _ in range(1 + number % 30)), sampling))
        if chance.random() < 0.05 and scheduler.running:
            scheduler.cancel(chance.choice(scheduler.running).id)
        chunks = scheduler.schedule()
        if chunks:
            fed += verify(builder, chunks, last)
            flights.append([last[chunk.sequence.slot] for chunk in chunks if chunk.samples])
        scheduler.launched(chunks)
        while len(flights) > bool(chunks):
            scheduler.resolve(flights.pop(0))
    assert scheduler.preemptions > 10
    assert fed > 500


def test_a_token_that_is_none_is_fed_back_as_one_with_an_embedding():
    scheduler = Scheduler(PagePool(8, PAGE), PagePool(8, PAGE), window=6, step_tokens=8, max_running=2)
    builder = BatchBuilder(PAGE, 2, 8, CPU)
    for name in "ab":
        scheduler.add(Request(name, (1, 2), Sampling(4)))
    chunks = scheduler.schedule()
    builder.feed(builder.build(chunks), torch.tensor([-1, -2]))
    scheduler.launched(chunks)
    assert builder.build(scheduler.schedule()).ids_T.tolist() == [0, 0]
