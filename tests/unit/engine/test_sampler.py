from __future__ import annotations

import math

import pytest
import torch
from one_row import distribution
from sampling_cases import CPU, choose, chosen_at, drawn, sampling

from gptoss_dist.engine.sampler import drawing_on
from gptoss_dist.kernels import sample_reference

V = 40
DRAWS = 5_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_logits(seed: int) -> torch.Tensor:
    return torch.randn(V, generator=generator(seed)) * 2


def chi_square(counts: dict[int, int], expected: dict[int, float], draws: int) -> float:
    return sum((counts.get(token, 0) - draws * p) ** 2 / (draws * p) for token, p in expected.items())


# ── greedy ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_greedy_is_the_largest_logit_whatever_else_is_set(dtype):
    for seed in range(20):
        logits_V = random_logits(seed).to(dtype)
        keys = sampling(temperature=0, top_k=3, top_p=0.01, min_p=0.9, seed=seed)
        assert logits_V[choose(logits_V, keys, seed)] == logits_V.max()


def test_greedy_takes_the_first_of_equals():
    logits_V = torch.zeros(V)
    logits_V[[7, 3, 30]] = 5.0
    assert choose(logits_V, sampling(temperature=0), 1) == 3


def test_logits_that_are_not_numbers_give_no_token():
    for value in (math.nan, -math.nan):
        for keys in (sampling(temperature=0), sampling(), sampling(top_p=0.5), sampling(top_k=3), sampling(min_p=0.5)):
            logits_V = random_logits(1)
            logits_V[7] = value
            assert choose(logits_V, keys, 1) == -1


@pytest.mark.parametrize("first", [0, 1000])
def test_on_a_cpu_greedy_rows_go_another_way_and_get_the_same(first):
    logits_RV = torch.randn(60, V, generator=generator(9)).bfloat16()
    logits_RV[3, 5] = math.nan
    logits_RV[4] = -math.inf
    logits_RV[5] = 1.0
    temperature_R = torch.tensor([0.0, 1.0, 0.5] * 20)
    seed_R, position_R = torch.arange(60) * 2**40, torch.arange(60)
    arguments = (logits_RV, first, temperature_R, seed_R, position_R)
    found, wanted = (draw(*arguments) for draw in (drawing_on(CPU).best_of_shard, sample_reference.best_of_shard))
    assert torch.equal(found[1], wanted[1])
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=0, equal_nan=True)


# ── how often ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 6},
        {"top_p": 0.8},
        {"min_p": 0.05},
        {"temperature": 0.7, "top_k": 10, "top_p": 0.9, "min_p": 0.02},
    ],
    ids=str,
)
def test_frequencies_are_those_of_the_distribution(keys):
    """Chi-square over 5,000 draws with a fixed seed; the border is mean + 5 standard deviations of chi-square."""
    logits_V = torch.randn(12, generator=generator(11))
    expected = distribution(logits_V.tolist(), **{"temperature": 1.0, **keys})
    counts: dict[int, int] = {}
    for token in drawn(logits_V, sampling(**keys), DRAWS, seed=1):
        counts[token] = counts.get(token, 0) + 1
    freedom = len(expected) - 1
    assert set(counts) <= set(expected)
    assert chi_square(counts, expected, DRAWS) < freedom + 5 * math.sqrt(2 * freedom)


def test_the_border_of_that_test_would_notice_another_distribution():
    logits_V = torch.randn(12, generator=generator(11))
    wrong = distribution(logits_V.tolist(), 1.25)
    counts: dict[int, int] = {}
    for token in drawn(logits_V, sampling(), DRAWS, seed=1):
        counts[token] = counts.get(token, 0) + 1
    assert chi_square(counts, wrong, DRAWS) > 11 + 5 * math.sqrt(22)


# ── seeds and number formats ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_seed_gives_the_same_tokens():
    logits_V = random_logits(2)
    keys = sampling(top_p=0.95)
    assert drawn(logits_V, keys, 50, seed=7) == drawn(logits_V, keys, 50, seed=7)
    assert drawn(logits_V, keys, 50, seed=7) != drawn(logits_V, keys, 50, seed=8)


def test_every_place_in_a_request_has_its_own_draw():
    logits_V = torch.zeros(V)
    tokens = drawn(logits_V, sampling(), 200, seed=3)
    assert len(set(tokens)) > V // 2
    assert tokens == chosen_at(logits_V, sampling(seed=3), list(reversed(range(200))))[::-1]


def test_a_cut_changes_no_draw_that_it_leaves_possible():
    logits_V = random_logits(4)
    uncut, cut = drawn(logits_V, sampling(), 300), drawn(logits_V, sampling(top_k=10), 300)
    left = set(logits_V.topk(10).indices.tolist())
    assert all(other == token for token, other in zip(uncut, cut, strict=True) if token in left)
    assert uncut != cut


def test_torchs_own_generator_is_not_used():
    logits_V = random_logits(2)
    torch.manual_seed(1)
    first = drawn(logits_V, sampling(), 20, seed=3)
    torch.manual_seed(2)
    assert drawn(logits_V, sampling(), 20, seed=3) == first


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_drawn_from_in_float32(dtype):
    logits_V = random_logits(5).to(dtype)
    keys = sampling(temperature=0.8, top_p=0.9, top_k=20)
    assert drawn(logits_V, keys, 100) == drawn(logits_V.float(), keys, 100)


def test_logits_are_not_changed():
    logits_V = random_logits(6)
    before_V = logits_V.clone()
    choose(logits_V, sampling(top_k=3, top_p=0.5, min_p=0.1, temperature=0.5), 1)
    assert torch.equal(logits_V, before_V)


@pytest.mark.parametrize("temperature", [1e-6, 1e-36])
def test_a_cold_temperature_is_greedy_and_does_not_overflow(temperature):
    logits_V = torch.tensor([20_000.0, 30_000.0, -30_000.0, 29_999.0])
    assert set(drawn(logits_V, sampling(temperature=temperature), 20)) == {1}


def test_the_whole_vocabulary_with_a_long_tail():
    """201,088 tokens: cumulative sums in float32 must keep the head, and the draw must work."""
    logits_V = torch.randn(201_088, generator=generator(1)) * 3
    best = set(logits_V.topk(2000).indices.tolist())
    for token in drawn(logits_V, sampling(top_p=0.5), 5):
        assert token in best
    keys = sampling(top_k=5, temperature=1.3)
    assert set(drawn(logits_V, keys, 10)) <= set(logits_V.topk(keys.top_k).indices.tolist())
