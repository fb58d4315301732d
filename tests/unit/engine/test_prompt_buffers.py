from __future__ import annotations

import dataclasses

import pytest
import torch
from step_checks import Paged, random_ids

from gptoss_dist.engine.prompt_buffers import PromptBuffers
from gptoss_dist.engine.sampler import Draw
from gptoss_dist.engine.step_input import StepInput

CPU = torch.device("cpu")
RUNNING, TOKENS, SPARE = 6, 32, 3
DECODING = [(0, 20, 1), (3, 7, 1)]
CHUNKS = [(1, 0, 9), (2, 4, 11)]


def a_step(pieces, sampled) -> tuple[StepInput, Draw, int]:
    paged = Paged(random_ids([30, 30, 30, 30], 512, seed=4), 4, 8)
    given = paged.step_input(pieces, CPU)
    count = len(sampled)
    draw = Draw(torch.rand(count), torch.randint(0, 99, (count,)), torch.randint(0, 99, (count,)))
    return dataclasses.replace(given, sampled_R=torch.tensor(sampled, dtype=torch.int64)), draw, paged.width


def used(buffers: PromptBuffers) -> PromptBuffers:
    """Buffers that a larger step was in."""
    for held in (buffers._ids_T, buffers._position_T, buffers._slots_2T, buffers._tables_22RN):
        held.fill_(77)
    for held in (buffers._first_C, buffers._count_C, buffers._start_C, buffers._sampled_R, *buffers._draw):
        held.fill_(77)
    return buffers


@pytest.mark.parametrize(
    ("pieces", "sampled", "decoding"),
    [
        (DECODING + CHUNKS, [0, 1, 10, 21], RUNNING),
        (DECODING + CHUNKS[:1], [0, 1], RUNNING),
        (CHUNKS, [8, 19], 0),
        (CHUNKS, [], 0),
    ],
    ids=["both", "a chunk that goes on", "prompts alone", "nothing to choose"],
)
def test_a_step_in_buffers_is_itself_and_padding(pieces, sampled, decoding):
    given, draw, pages = a_step(pieces, sampled)
    buffers = used(PromptBuffers(RUNNING, TOKENS, pages + SPARE, CPU))
    buffers.fill(given, draw, decoding, TOKENS)
    here, drawn = buffers.views(decoding, TOKENS)
    mine, chunk_rows = given.decoding, len(given.ids_T) - given.decoding
    assert here.decoding == decoding
    assert len(here.ids_T) == decoding + TOKENS
    regions = [(slice(0, mine), slice(0, decoding)), (slice(mine, None), slice(decoding, None))]
    for theirs, ours in regions:
        wanted, found = given.ids_T[theirs], here.ids_T[ours]
        assert torch.equal(found[: len(wanted)], wanted)
        assert (found[len(wanted) :] == wanted[-1:]).all()
        nowhere = ((one.position_T, one.full.slot_T, one.sliding.slot_T) for one in (given, here))
        for wanted, found in zip(*nowhere, strict=True):
            wanted, found = wanted[theirs], found[ours]
            assert torch.equal(found[: len(wanted)], wanted)
            assert (found[len(wanted) :] == -1).all()
    for wanted, found in ((given.full, here.full), (given.sliding, here.sliding)):
        assert torch.equal(found.table_SN[:mine, :pages], wanted.table_SN)
        assert torch.equal(found.table_CN[: len(wanted.table_CN), :pages], wanted.table_CN)
        assert (found.table_SN[:, pages:] == 77).all()
    count = len(given.chunks.count_C)
    assert here.chunks.count_C.tolist() == given.chunks.count_C.tolist() + [0] * (RUNNING - count)
    assert torch.equal(here.chunks.first_C[:count], given.chunks.first_C)
    assert torch.equal(here.chunks.start_C[:count], given.chunks.start_C)
    assert here.chunks.longest >= chunk_rows
    moved = [row if row < mine else row + decoding - mine for row in sampled]
    assert here.sampled_R[: len(sampled)].tolist() == moved
    assert here.sampled_R.max() < len(here.ids_T), "a row that there is not"
    for wanted, found in zip(draw, drawn, strict=True):
        assert torch.equal(found[: len(sampled)], wanted)
