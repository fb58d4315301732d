from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from gptoss_dist.engine.request import Sampling
from gptoss_dist.engine.sampler import choose, drawing_on, kept
from gptoss_dist.kernels import sample_reference

V = 40
DRAWS = 5_000
CPU = torch.device("cpu")


def sampling(**keys) -> Sampling:
    return Sampling(max_tokens=1, **keys)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference(
    logits: list[float], temperature: float, top_k: int | None = None, top_p: float = 1.0, min_p: float = 0.0
) -> dict[int, float]:
    """The distribution that is drawn from, token by token, in Python's own numbers."""
    highest = max(logits)
    weights = {token: math.exp((logit - highest) / temperature) for token, logit in enumerate(logits)}
    if top_k is not None:
        border = sorted(logits, reverse=True)[:top_k][-1]
        weights = {token: weight for token, weight in weights.items() if logits[token] >= border}
    total = sum(weights.values())
    weights = {token: weight / total for token, weight in weights.items()}
    kept, mass = {}, 0.0
    for token in sorted(weights, key=lambda token: (-weights[token], token)):
        if mass >= top_p:
            break
        kept[token] = weights[token]
        mass += weights[token]
    floor = min_p * max(kept.values())
    kept = {token: weight for token, weight in kept.items() if weight >= floor}
    total = sum(kept.values())
    return {token: weight / total for token, weight in kept.items()}


def drawn(logits_V: torch.Tensor, keys: Sampling, count: int, seed: int = 0) -> list[int]:
    """At places 0, 1, … of a request, all of them at once."""
    seed_R, temperature_R = torch.full((count,), seed), torch.full((count,), keys.temperature)
    logits_RV = kept(logits_V, keys).expand(count, -1)
    _, token_R = sample_reference.best_of_shard(logits_RV, 0, temperature_R, seed_R, torch.arange(count))
    one_by_one = [int(choose(logits_V, dataclasses.replace(keys, seed=seed), position)) for position in range(3)]
    assert token_R[:3].tolist() == one_by_one[:count]
    return token_R.tolist()


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
        chosen = choose(logits_V, keys, seed)
        assert logits_V[chosen] == logits_V.max()
        assert (chosen.dtype, chosen.ndim) == (torch.int64, 0)


def test_greedy_takes_the_first_of_equals():
    logits_V = torch.zeros(V)
    logits_V[[7, 3, 30]] = 5.0
    assert int(choose(logits_V, sampling(temperature=0), 1)) == 3


def test_logits_that_are_not_numbers_give_no_token():
    for value in (math.nan, -math.nan):
        for keys in (sampling(temperature=0), sampling(), sampling(top_p=0.5), sampling(top_k=3), sampling(min_p=0.5)):
            logits_V = random_logits(1)
            logits_V[7] = value
            assert int(choose(logits_V, keys, 1)) == -1


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


# ── which tokens may be drawn ────────────────────────────────────────────────────────────────────────────────────────

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
        expected = reference(logits_V.tolist(), temperature, **cut)
        kept_V = kept(logits_V, sampling(temperature=temperature, **cut))
        assert set((kept_V > -torch.inf).nonzero().flatten().tolist()) == set(expected)
        probabilities_V = (kept_V / temperature).softmax(dim=-1)
        for token, probability in expected.items():
            assert probabilities_V[token].item() == pytest.approx(probability, rel=1e-4)
        assert int(choose(logits_V, sampling(temperature=temperature, seed=seed, **cut), 5)) in expected


@pytest.mark.parametrize("cut", [{"top_k": 4}, {"top_p": 0.6}, {"min_p": 0.2}], ids=str)
def test_nothing_outside_the_set_is_ever_drawn(cut):
    logits_V = random_logits(3)
    allowed = set(reference(logits_V.tolist(), 1.0, **cut))
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
    expected = reference(logits_V.tolist(), **{"temperature": 1.0, **keys})
    counts: dict[int, int] = {}
    for token in drawn(logits_V, sampling(**keys), DRAWS, seed=1):
        counts[token] = counts.get(token, 0) + 1
    freedom = len(expected) - 1
    assert set(counts) <= set(expected)
    assert chi_square(counts, expected, DRAWS) < freedom + 5 * math.sqrt(2 * freedom)


def test_the_border_of_that_test_would_notice_another_distribution():
    logits_V = torch.randn(12, generator=generator(11))
    wrong = reference(logits_V.tolist(), 1.25)
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
    tokens = [int(choose(logits_V, sampling(seed=3), position)) for position in range(200)]
    assert len(set(tokens)) > V // 2
    assert tokens == [int(choose(logits_V, sampling(seed=3), position)) for position in reversed(range(200))][::-1]


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
