from __future__ import annotations

import dataclasses

import pytest
import torch
from recording_player import Recorder
from step_checks import Paged, random_ids

from gptoss_dist.engine.decode_buffers import DecodeOutput
from gptoss_dist.engine.graphs import NoGraphs
from gptoss_dist.engine.prompt_buffers import PromptBuffers
from gptoss_dist.engine.prompt_steps import PromptSteps, prompt_buckets
from gptoss_dist.engine.sampler import Draw
from gptoss_dist.engine.step import Step
from gptoss_dist.engine.take_weights import take_weights
from gptoss_dist.kernels.all_reduce_reference import LocalReducer
from gptoss_dist.kernels.step_kernels import step_kernels

CPU = torch.device("cpu")
RUNNING = 5
LENGTHS = (21, 33, 18, 40)
CACHED = (20, 9, 0, 5)
"""Tokens in the cache of each sequence before the steps that are compared."""


def test_there_are_graphs_for_no_more_tokens_than_a_step_takes_in():
    assert prompt_buckets(63) == ()
    assert prompt_buckets(200) == (64, 128, 192)
    assert prompt_buckets(8192)[-2:] == (896, 1024)
    assert list(prompt_buckets(8192)) == sorted(set(prompt_buckets(8192)))


@torch.no_grad()
def begun(session):
    """A step over pages that hold CACHED tokens of some sequences, and the model's own logits of all of them."""
    ids = random_ids(LENGTHS, 512, seed=8)
    weights = take_weights(session.loaded, 0)
    paged = Paged(ids, 4, weights.window)
    step = Step(weights, step_kernels("reference"), paged.cache(weights), LocalReducer())
    step(paged.step_input([(number, 0, count) for number, count in enumerate(CACHED) if count], CPU))
    return paged, step, [session.loaded.model(input_ids=one[None]).logits[0] for one in ids]


def steps_over(step, pages, player, buckets) -> PromptSteps:
    def compute(given, draw, output):
        step(given, output.logits_SV)
        output.tokens_S.copy_(output.logits_SV.argmax(dim=1))

    output = DecodeOutput(torch.full((RUNNING, 512), torch.nan), torch.full((RUNNING,), -7))
    return PromptSteps(compute, PromptBuffers(RUNNING, buckets[-1], pages, CPU), output, player, buckets)


def after_the_last(pieces) -> list[int]:
    rows, first = [], 0
    for _, _, count in pieces:
        first += count
        rows.append(first - 1)
    return rows


@torch.no_grad()
def test_a_padded_step_over_buffers_is_the_plain_step(small_session):
    paged, step, wanted = begun(small_session)
    player = Recorder()
    steps = steps_over(step, paged.width + 2, player, (8, 16, 32))
    assert player.prepared == [("prompts", some, tokens) for tokens in (32, 16, 8) for some in (RUNNING, 0)]
    assert steps.summary.startswith("6 of prompts of up to 32 tokens in ")
    played = [
        ([(0, 20, 1), (1, 9, 11), (2, 0, 5), (3, 5, 13)], (RUNNING, 32)),  # 29 tokens of chunks
        ([(2, 5, 1), (1, 20, 7)], (RUNNING, 8)),
        ([(1, 27, 6), (3, 18, 7)], (0, 16)),
        ([(2, 6, 8)], (0, 8)),
    ]
    for pieces, _ in played:
        given = paged.step_input(pieces, CPU)
        sampled = torch.tensor(after_the_last(pieces))
        given = dataclasses.replace(given, sampled_R=sampled)
        assert steps.takes(given)
        count = len(sampled)
        draw = Draw(torch.zeros(count), torch.zeros(count).long(), torch.zeros(count).long())
        logits, tokens = (part.clone() for part in steps.run(given, draw))
        truth = torch.stack([wanted[number][start + some - 1] for number, start, some in pieces])
        torch.testing.assert_close(logits, truth, rtol=0, atol=1e-4)
        assert torch.equal(tokens, truth.argmax(dim=1))
    assert player.played == [("prompts", *key) for _, key in played]


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[(0, 20, 1), (2, 0, 5)], [(2, 0, 5)]], ids=["beside decoding", "alone"])
def test_padding_writes_no_page(small_session, pieces):
    paged, step, _ = begun(small_session)
    steps = steps_over(step, paged.width, NoGraphs(), (32,))
    given = dataclasses.replace(paged.step_input(pieces, CPU), sampled_R=torch.tensor(after_the_last(pieces)))
    before = [cache.key_PBKD.clone() for cache in step._cache]
    count = len(pieces)
    steps.run(given, Draw(torch.zeros(count), torch.zeros(count).long(), torch.zeros(count).long()))
    for number, (cache, old) in enumerate(zip(step._cache, before, strict=True)):
        slots = given.full.slot_T if number % 2 else given.sliding.slot_T
        changed = (cache.key_PBKD.nan_to_num(9.0) != old.nan_to_num(9.0)).any(dim=(2, 3)).flatten()
        assert changed.nonzero().flatten().tolist() == sorted(slots.tolist())


def test_larger_steps_are_not_taken(small_session):
    paged, step, _ = begun(small_session)
    steps = steps_over(step, paged.width, NoGraphs(), (8,))
    assert steps.takes(paged.step_input([(0, 20, 1), (2, 0, 8)], CPU))
    assert not steps.takes(paged.step_input([(2, 0, 9)], CPU))
