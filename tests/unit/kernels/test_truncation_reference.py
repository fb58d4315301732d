"""The reference of the cuts, against their definition in Python's own numbers."""

from __future__ import annotations

import math

import pytest
import torch
from truncation_cases import Asked, cuts_for, kinds

from gptoss_dist.kernels.truncation_reference import WHOLE, WHOLE_BITS, distances, rate_of, truncate, weights


def stays(logits: list[float], asked: Asked) -> set[int]:
    """Token after token, the nearest first and of equal ones the lowest."""
    distance_1V = distances(torch.tensor([logits]))
    distance = distance_1V[0].tolist()
    weight = weights(distance_1V, torch.tensor([[rate_of(asked.temperature)]]))[0].tolist()
    order = sorted(range(len(logits)), key=lambda token: (distance[token], token))
    if asked.top_k is not None and asked.top_k <= sum(one > 0 for one in weight):
        order = [token for token in order if distance[token] <= distance[order[asked.top_k - 1]]]
    if asked.top_p < 1:
        needed, total, kept = math.ceil(asked.top_p * sum(weight[token] for token in order)), 0, []
        while total < needed:
            kept.append(order[len(kept)])
            total += weight[kept[-1]]
        order = kept
    farthest = -math.log(asked.min_p) * asked.temperature if asked.min_p else math.inf
    return {token for token in order if distance[token] <= farthest and logits[token] > -math.inf}


@pytest.mark.parametrize("columns", [1, 57])
@pytest.mark.parametrize("heat", [0.01, 2.0, 30.0])
def test_it_keeps_what_the_definition_keeps(columns, heat):
    generator, asked = torch.Generator().manual_seed(columns), kinds(columns) * 2
    rows = torch.randperm(len(asked) + 2, generator=generator)[: len(asked)].tolist()
    logits_RV = torch.randn(len(asked) + 2, columns, generator=generator) * heat
    logits_RV[::2] = logits_RV[::2].round()
    logits_RV[1:, 1::5] = -torch.inf
    found_LV = truncate(logits_RV, torch.tensor(rows), cuts_for(asked, columns))
    for found_V, row, one in zip(found_LV, rows, asked, strict=True):
        wanted = stays(logits_RV[row].tolist(), one)
        assert set((found_V > -torch.inf).nonzero().flatten().tolist()) == wanted
        assert torch.equal(found_V[sorted(wanted)], logits_RV[row, sorted(wanted)])


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 20.0])
def test_weights_are_powers(temperature):
    distance_V = torch.linspace(0, 1.1 * WHOLE_BITS * math.log(2) * temperature, 100_001)
    [found_V] = weights(distance_V.unsqueeze(0), torch.tensor([[rate_of(temperature)]]))
    wanted_V = WHOLE * torch.exp(-distance_V.double() / temperature)
    assert bool(((found_V - wanted_V).abs() <= 5e-6 * wanted_V + 1).all())
    assert found_V[0] == WHOLE
    assert bool((found_V.diff() <= 0).all())
    assert found_V[-1] == 0


def test_the_nearest_token_weighs_most_whatever_the_temperature():
    distance_V = torch.tensor([0.0, 1e-30, 1.0, 1e30, math.inf])
    for temperature in (1e-300, 1e-30, 1.0, 1e30, 1e300):
        [found_V] = weights(distance_V.unsqueeze(0), torch.tensor([[rate_of(temperature)]]))
        assert found_V[0] == WHOLE
        assert found_V[-1] == 0
