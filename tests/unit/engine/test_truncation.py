"""Which tokens are left for the draw: those of the reference, whatever else is in the block."""

from __future__ import annotations

import math
import random

import pytest
import torch
from one_row import distribution
from sampling_cases import CPU, choose, drawn, sampling

from gptoss_dist.engine import truncation
from gptoss_dist.engine.request import Sampling
from gptoss_dist.engine.staging import Staging
from gptoss_dist.kernels import truncation_reference

V = 40


def random_logits(seed: int) -> torch.Tensor:
    return torch.randn(V, generator=torch.Generator().manual_seed(seed)) * 2


def truncated(logits_LV: torch.Tensor, samplings: list[Sampling]) -> torch.Tensor:
    cuts = truncation.cuts_of(samplings, logits_LV.shape[1], Staging(CPU))
    return logits_LV if cuts is None else truncation.truncate_on(CPU)(logits_LV, torch.arange(len(samplings)), cuts)


_CUTS = [
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": V},
    {"top_k": 10 * V},
    {"top_p": 0.05},
    {"top_p": 0.5},
    {"top_p": 0.9},
    {"min_p": 0.05},
    {"min_p": 0.5},
    {"top_k": 8, "top_p": 0.7},
    {"top_k": 8, "min_p": 0.1},
    {"top_p": 0.8, "min_p": 0.2},
    {"top_k": 12, "top_p": 0.95, "min_p": 0.02},
]


@pytest.mark.parametrize("cut", _CUTS, ids=str)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_cuts_keep_the_set_of_the_reference(cut, temperature):
    """What goes into the draw, compared with the reference as a whole: no tail is too unlikely to be seen."""
    for seed in range(10):
        logits_V = random_logits(seed)
        expected = distribution(logits_V.tolist(), temperature, **cut)
        [kept_V] = truncated(logits_V.unsqueeze(0), [sampling(temperature=temperature, **cut)])
        assert set((kept_V > -torch.inf).nonzero().flatten().tolist()) == set(expected)
        probabilities_V = (kept_V / temperature).softmax(dim=-1)
        for token, probability in expected.items():
            assert probabilities_V[token].item() == pytest.approx(probability, rel=1e-4)
        assert choose(logits_V, sampling(temperature=temperature, seed=seed, **cut), 5) in expected


@pytest.mark.parametrize("cut", [{"top_k": 4}, {"top_p": 0.6}, {"min_p": 0.2}], ids=str)
def test_nothing_outside_the_set_is_ever_drawn(cut):
    logits_V = random_logits(3)
    allowed = set(distribution(logits_V.tolist(), 1.0, **cut))
    assert set(drawn(logits_V, sampling(**cut), 2000)) == allowed


def test_the_token_that_crosses_top_p_stays():
    logits_V = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert set(drawn(logits_V, sampling(top_p=0.51), 500)) == {0, 1}
    assert set(drawn(logits_V, sampling(top_p=0.49), 500)) == {0}
    assert set(drawn(logits_V, sampling(top_p=1e-9), 100)) == {0}


def test_ties_at_the_border_of_top_k_all_stay():
    logits_V = torch.tensor([1.0, 3.0, 3.0, 3.0, 0.0])
    assert set(drawn(logits_V, sampling(top_k=2), 500)) == {1, 2, 3}


def test_ties_at_the_border_of_top_p_stay_by_lower_id():
    logits_V = torch.zeros(4)
    assert set(drawn(logits_V, sampling(top_p=0.5), 500)) == {0, 1}


def test_forbidden_tokens_are_never_drawn():
    logits_V = torch.full((V,), -torch.inf)
    logits_V[[5, 9]] = torch.tensor([0.0, -1.0])
    for cut in ({}, {"top_k": 10}, {"top_p": 0.99}, {"min_p": 0.01}):
        assert set(drawn(logits_V, sampling(**cut), 300)) == {5, 9}


def test_one_token_left():
    assert drawn(torch.zeros(1), sampling(top_p=0.5, top_k=1, min_p=0.5), 3) == [0, 0, 0]


@pytest.mark.parametrize("rows", [3, truncation_reference.ROWS, 2 * truncation_reference.ROWS + 3])
def test_a_row_keeps_in_a_block_what_it_keeps_alone(rows):
    """To the last bit, whoever its neighbours are; rows that are not cut stay as they are."""
    chance = random.Random(rows)
    kinds = [*_CUTS, {}, {"temperature": 0.0, "top_p": 0.5}]
    samplings = [sampling(**{"temperature": chance.uniform(0.2, 2), **chance.choice(kinds)}) for _ in range(rows)]
    logits_LV = torch.randn(rows, 3001, generator=torch.Generator().manual_seed(rows)) * 3
    found_LV = truncated(logits_LV, samplings)
    for number, keys in enumerate(samplings):
        assert torch.equal(found_LV[number], truncated(logits_LV[number : number + 1], [keys])[0])
        if not keys.cuts:
            assert torch.equal(found_LV[number], logits_LV[number])
    order = chance.sample(range(rows), rows)
    assert torch.equal(truncated(logits_LV[order], [samplings[number] for number in order]), found_LV[order])


def test_nothing_is_cut_where_nobody_asks():
    assert truncation.cuts_of([sampling(), sampling(temperature=0.0, top_p=0.5)], V, Staging(CPU)) is None


def test_a_row_that_is_not_numbers_stays_so_and_its_neighbours_do_not_mind():
    for cut in _CUTS:
        logits_LV = torch.stack([random_logits(number) for number in range(3)])
        logits_LV[1, 7] = math.nan
        keys = [sampling(**cut)] * 3
        found_LV = truncated(logits_LV, keys)
        assert bool(found_LV[1].isnan().any())
        for row in (0, 2):
            assert torch.equal(found_LV[row], truncated(logits_LV[row : row + 1], keys[:1])[0])


def test_a_sum_that_reaches_top_p_exactly_ends_the_nucleus():
    """Four tokens of a quarter each: sums are whole numbers, and no rounding moves the border."""
    for top_p, count in ((0.25, 1), (0.2500001, 2), (0.5, 2), (0.75, 3), (0.7500001, 4)):
        [kept_V] = truncated(torch.zeros(1, 4), [sampling(top_p=top_p)])
        assert int((kept_V == 0).sum()) == count
