"""Requests of every kind that a choice of tokens knows, some of them under way; their tokens are small numbers."""

from __future__ import annotations

import torch

from gptoss_dist.engine.request import Request, Row, Sampling
from gptoss_dist.engine.sampler import Draw

KINDS: list[dict[str, object]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.7, "top_p": 0.8},
    {"top_k": 4},
    {"temperature": 0.0, "logprobs": 2},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"repetition_penalty": 1.5, "temperature": 0.0},
    {"min_p": 0.1, "top_k": 30, "top_p": 0.95, "presence_penalty": -1.0, "logit_bias": ((4, 3.0), (9, -100.0))},
    {"logit_bias": ((3, 5.0),), "logprobs": 0},
    {"logprobs": 5, "temperature": 2.0},
]


def draw_of(rows: list[Row]) -> Draw:
    samplings = [row.request.sampling for row in rows]
    return Draw(
        torch.tensor([one.temperature for one in samplings]),
        torch.tensor([one.seed for one in samplings]),
        torch.tensor([len(row.tokens) for row in rows]),
    )


def make_rows(count: int) -> list[Row]:
    rows = []
    for number in range(count):
        sampling = Sampling(**{"max_tokens": 99, "seed": number, **KINDS[number % len(KINDS)]})
        prompt = tuple(range(number % 5 + 1))
        rows.append(Row(Request(str(number), prompt, sampling), [*prompt, *([7, 7, 9] * (number % 3))]))
    return rows
