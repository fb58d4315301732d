from __future__ import annotations

import dataclasses

import pytest
import torch
from recording_player import Recorder
from step_checks import Paged, random_ids

from gptoss_dist.engine.decode_buffers import DecodeBuffers, DecodeInput, DecodeOutput
from gptoss_dist.engine.graphs import DecodeSteps, NoGraphs, batch_buckets, next_up, table_widths
from gptoss_dist.engine.step import Step
from gptoss_dist.engine.take_weights import take_weights
from gptoss_dist.kernels.all_reduce_reference import LocalReducer
from gptoss_dist.kernels.step_kernels import step_kernels

CPU = torch.device("cpu")
CACHED = (20, 9, 33, 17, 5)
"""Tokens in the cache of each sequence before the step that is compared."""


@pytest.mark.parametrize(
    ("most", "wanted"),
    [
        (1, (1,)),
        (3, (1, 2, 3)),
        (8, (1, 2, 4, 8)),
        (64, (1, 2, 4, 8, 16, 24, 32, 48, 64)),
        (70, (1, 2, 4, 8, 16, 24, 32, 48, 64, 70)),
        (130, (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 130)),
    ],
)
def test_buckets_end_with_the_most_sequences_there_can_be(most, wanted):
    assert batch_buckets(most) == wanted


def test_widths_end_with_the_longest_table():
    assert table_widths(8192, 16) == (128, 8192)
    assert table_widths(100, 16) == (100,)
    assert table_widths(128, 16) == (128,)


def test_the_next_size_up():
    assert [next_up((1, 2, 4), wanted) for wanted in (0, 1, 3, 4)] == [1, 1, 4, 4]
    with pytest.raises(ValueError, match="5 is more than the largest of"):
        next_up((1, 2, 4), 5)


def some_input(count: int, pages: int) -> DecodeInput:
    def some(*shape: int, dtype=torch.int32):
        return torch.randint(0, 1000, shape, dtype=dtype)

    return DecodeInput(
        ids_S=some(count, dtype=torch.int64),
        position_S=some(count),
        full_slot_S=some(count, dtype=torch.int64),
        sliding_slot_S=some(count, dtype=torch.int64),
        full_table_SN=some(count, pages),
        sliding_table_SN=some(count, pages),
        temperature_S=torch.rand(count),
        seed_S=some(count, dtype=torch.int64),
        place_S=some(count, dtype=torch.int64),
    )


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (1, 4), (3, 4), (4, 8), (8, 8)])
def test_padding_repeats_the_last_row_and_keeps_nothing(count, rows):
    buffers = DecodeBuffers(8, 6, CPU)
    for tensor in buffers.all.tensors():
        tensor.fill_(77)
    before = [tensor.data_ptr() for tensor in buffers.all.tensors()]
    given = some_input(count, 5)
    buffers.fill(given, rows)
    held = buffers.all.narrow(0, rows, 5)
    for field in dataclasses.fields(DecodeInput):
        wanted, found = getattr(given, field.name), getattr(held, field.name)
        assert torch.equal(found[:count], wanted), field.name
        if "slot" in field.name:
            assert (found[count:] == -1).all()
        else:
            assert torch.equal(found[count:], wanted[-1:].expand(rows - count, *wanted.shape[1:]))
    assert [tensor.data_ptr() for tensor in buffers.all.tensors()] == before
    rest = buffers.all.narrow(rows, 8, 6)
    assert all((tensor == 77).all() for tensor in rest.tensors())
    assert (buffers.all.full_table_SN[:, 5] == 77).all()


@torch.no_grad()
def decoding_after(session, kernels="reference"):
    """A step over pages that hold CACHED tokens of some sequences, and the input of the next token of each."""
    ids = random_ids([count + 1 for count in CACHED], 512, seed=8)
    weights = take_weights(session.loaded, 0)
    paged = Paged(ids, 4, weights.window)
    step = Step(weights, step_kernels(kernels), paged.cache(weights), LocalReducer())
    step(paged.step_input([(number, 0, count) for number, count in enumerate(CACHED)], CPU))
    wanted = [session.loaded.model(input_ids=one[None]).logits[0, -1] for one in ids]
    return weights, paged, step, torch.stack(wanted)


def test_what_is_closed_holds_nothing():
    player = NoGraphs()
    player.prepare((1, 1), lambda: None)
    player.close()
    with pytest.raises(KeyError):
        player.play((1, 1))


def as_decode(step_input) -> DecodeInput:
    full, sliding = step_input.full, step_input.sliding
    count = step_input.decoding
    zeros = torch.zeros(count, dtype=torch.int64)
    rows = (step_input.ids_T, step_input.position_T, full.slot_T, sliding.slot_T, full.table_SN, sliding.table_SN)
    return DecodeInput(*rows, torch.zeros(count), zeros, zeros)


def steps_over(step, rows, pages, player, buckets, widths) -> DecodeSteps:
    def compute(given, output):
        step(given.as_step(), output.logits_SV)
        output.tokens_S.copy_(output.logits_SV.argmax(dim=1))

    output = DecodeOutput(torch.full((rows, 512), torch.nan), torch.full((rows,), -7))
    return DecodeSteps(compute, DecodeBuffers(rows, pages, CPU), output, player, buckets, widths)


@torch.no_grad()
def test_a_padded_step_over_buffers_is_the_plain_step(small_session):
    _, paged, step, wanted = decoding_after(small_session)
    player = Recorder()
    decode = steps_over(step, 8, paged.width + 3, player, (1, 2, 4, 8), (3, paged.width + 3))
    assert player.prepared == [(rows, pages) for rows in (8, 4, 2, 1) for pages in (paged.width + 3, 3)]
    assert decode.summary.startswith("8 CUDA graphs of up to 8 sequences in ")
    for some in ([0, 1, 2, 3, 4], [3], [4, 0, 1], [1, 2]):
        given = paged.step_input([(number, CACHED[number], 1) for number in some], CPU)
        found, tokens = (part.clone() for part in decode.run(as_decode(given)))
        assert torch.equal(tokens, wanted[some].argmax(dim=1))
        torch.testing.assert_close(found, wanted[some], rtol=0, atol=1e-4)
        torch.testing.assert_close(found, step(given), rtol=0, atol=1e-5)
    assert [rows for rows, _ in player.played] == [8, 1, 4, 2]


@torch.no_grad()
def test_a_narrow_table_plays_the_narrow_step(small_session):
    _, paged, step, wanted = decoding_after(small_session)
    player = Recorder()
    decode = steps_over(step, 4, 9, player, (4,), (3, 9))
    given = as_decode(paged.step_input([(1, CACHED[1], 1), (4, CACHED[4], 1)], CPU))
    found = decode.run(given.narrow(0, 2, 3)).logits_SV.clone()
    assert player.played == [(4, 3)]
    torch.testing.assert_close(found, wanted[[1, 4]], rtol=0, atol=1e-4)
    torch.testing.assert_close(decode.run(given).logits_SV, wanted[[1, 4]], rtol=0, atol=1e-4)
    assert player.played == [(4, 3), (4, 9)]


@torch.no_grad()
def test_padding_rows_write_no_page(small_session):
    _, paged, step, _ = decoding_after(small_session)
    decode = steps_over(step, 8, paged.width, NoGraphs(), (8,), (paged.width,))
    given = as_decode(paged.step_input([(2, CACHED[2], 1)], CPU))
    before = [cache.key_PBKD.clone() for cache in step._cache]
    decode.run(given)
    for number, (cache, old) in enumerate(zip(step._cache, before, strict=True)):
        slot = int(given.full_slot_S[0] if number % 2 else given.sliding_slot_S[0])
        changed = (cache.key_PBKD.nan_to_num(9.0) != old.nan_to_num(9.0)).any(dim=(2, 3)).flatten()
        assert changed.nonzero().flatten().tolist() == [slot]
