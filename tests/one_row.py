"""The token that a request chooses by itself, in Python's own numbers: what blocks of rows are compared with.

Only the noise comes from the package, from the reference of its kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from gptoss_dist.engine.request import Sampling
from gptoss_dist.kernels import sample_reference


def adjusted(logits: list[float], sampling: Sampling, prompt: Sequence[int], output: Sequence[int]) -> list[float]:
    """Logits after penalties and biases, token by token, as the definitions read."""
    found = []
    for token, value in enumerate(logits):
        if token in prompt or token in output:
            value = value / sampling.repetition_penalty if value > 0 else value * sampling.repetition_penalty
        count = list(output).count(token)
        value -= sampling.presence_penalty * (count > 0) + sampling.frequency_penalty * count
        found.append(value + sum(bias for biased, bias in sampling.logit_bias if biased == token))
    return found


def distribution(
    logits: list[float], temperature: float, top_k: int | None = None, top_p: float = 1.0, min_p: float = 0.0
) -> dict[int, float]:
    """The distribution that is drawn from: probabilities of the tokens that are not cut."""
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


def choose(
    logits_V: torch.Tensor,
    sampling: Sampling,
    prompt: Sequence[int],
    output: Sequence[int],
    allowed: set[int] | None = None,
) -> int:
    """The token after prompt and output."""
    logits = adjusted(logits_V.tolist(), sampling, prompt, output)
    if allowed is not None:
        logits = [value if token in allowed else -math.inf for token, value in enumerate(logits)]
    if sampling.temperature > 0:
        kept = distribution(logits, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
        logits = [value if token in kept else -math.inf for token, value in enumerate(logits)]
    draw = (torch.tensor([value]) for value in (sampling.temperature, sampling.seed, len(prompt) + len(output)))
    _, [token] = sample_reference.best_of_shard(torch.tensor([logits]), 0, *draw)
    return int(token)
