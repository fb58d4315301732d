"""Requests of one row at many places, for the tests of how tokens are drawn."""

from __future__ import annotations

import dataclasses

import torch

from gptoss_dist.engine.choice import Chooser
from gptoss_dist.engine.logits import Logits
from gptoss_dist.engine.request import Request, Row, Sampling
from gptoss_dist.engine.sampler import Draw
from gptoss_dist.runtime.mesh import Ranks

CPU = torch.device("cpu")
ALONE = Ranks(1, 1, 0, 0, None)


def sampling(**keys: object) -> Sampling:
    return Sampling(max_tokens=1, **keys)  # type: ignore[arg-type]


def chosen_at(logits_V: torch.Tensor, keys: Sampling, places: list[int]) -> list[int]:
    """The tokens at these places of a request, all of them in one step."""
    rows = [Row(Request(str(place), (0,), keys), [0]) for place in places]
    count = len(places)
    draw = Draw(torch.full((count,), keys.temperature), torch.full((count,), keys.seed), torch.tensor(places))
    logits_RV = logits_V.expand(count, -1)
    return Chooser(ALONE, CPU).choose(rows, Logits(logits_RV), draw).tokens_R.tolist()


def choose(logits_V: torch.Tensor, keys: Sampling, place: int) -> int:
    """The token at a place; -1 if a logit is not a number."""
    [token] = chosen_at(logits_V, keys, [place])
    return token


def drawn(logits_V: torch.Tensor, keys: Sampling, count: int, seed: int = 0) -> list[int]:
    """At places 0, 1, … of a request."""
    return chosen_at(logits_V, dataclasses.replace(keys, seed=seed), list(range(count)))
