"""What each rank of `test_engine_choice.py` runs: tokens chosen from a vocabulary that is cut over the ranks."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from careful_rows import draw_of

from gptoss_dist.engine.choice import Chooser
from gptoss_dist.engine.logits import Logits
from gptoss_dist.engine.request import Request, Row, Sampling
from gptoss_dist.errors import LogitsError
from gptoss_dist.launcher.env import read_rank_env
from gptoss_dist.runtime.dist import start
from gptoss_dist.runtime.mesh import make_ranks

V = 61
KINDS: list[dict[str, object]] = [
    {},
    {"temperature": 0.0},
    {"top_p": 0.8},
    {"temperature": 0.0, "logprobs": 2},
    {"presence_penalty": 1.0, "frequency_penalty": 1.0, "temperature": 0.0},
    {"temperature": 0.5},
]


class Odd:
    """Allows odd tokens; nothing in the request named `blocked`."""

    def __init__(self, nothing: bool) -> None:
        self.nothing = nothing

    def start(self, prompt: tuple[int, ...]) -> Odd:
        return self

    def allowed(self) -> torch.Tensor:
        return (torch.arange(V) % 2 == 1) & (not self.nothing)

    def accept(self, token: int) -> None:
        return None


def make_rows() -> list[Row]:
    rows = []
    for number in range(24):
        sampling = Sampling(**{"max_tokens": 9, "seed": number, **KINDS[number % 6]})
        rows.append(Row(Request(str(number), (1, 2), sampling), [1, 2, 5]))
    for name in ("odd", "blocked"):
        rows.append(Row(Request(name, (1, 2), Sampling(9), Odd(name == "blocked")), [1, 2, 5]))
    return rows


def logits_of(rows: int, seed: int = 4) -> torch.Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * 2


def steps_of(chooser: Chooser, cut: Callable[[torch.Tensor], Logits]) -> list[list[int | None]]:
    """Some steps in a row over the same logits, in which penalties look at the tokens of those before."""
    rows, found = make_rows(), []
    for _ in range(5):
        tokens, _ = chooser.choose(rows, cut(logits_of(len(rows))), draw_of(rows)).wait("a step")
        found.append(tokens)
        for row, token in zip(rows, tokens, strict=True):
            row.tokens.append(token or 0)
    return found


def choose(out: str) -> None:
    """Body of a rank."""
    torch.set_num_threads(1)
    env = read_rank_env(os.environ)
    group = start("cpu", env, timeout=timedelta(seconds=60))
    ranks = make_ranks(group, dp=1, tp=group.world_size)
    width = -(-V // ranks.tp)  # the last rank has fewer
    widths = tuple(min(width, V - width * rank) for rank in range(ranks.tp))
    first = width * ranks.tp_rank
    rows = make_rows()
    whole_RV = logits_of(len(rows))

    def cut(logits_RV: torch.Tensor) -> Logits:
        mine_RC = logits_RV[:, first : first + widths[ranks.tp_rank]].contiguous()
        return Logits(mine_RC, first, widths, ranks.tp_group)

    found: dict[str, object] = {}
    # A rank's own whole logits may differ in the last bits: the first rank's count.
    disturbed_RV = whole_RV + (100.0 * torch.randn(whole_RV.shape) if ranks.tp_rank else 0.0)
    for name, logits in (
        ("whole", Logits(disturbed_RV)),
        ("cut", cut(whole_RV)),
        ("half", cut(whole_RV.bfloat16())),
    ):
        tokens, logprobs = Chooser(ranks, group.device).choose(rows, logits, draw_of(rows)).wait("step 1")
        tops = {one: [token for token, _ in value.top] for one, value in logprobs.items()}
        found[name] = [tokens, tops if name == "cut" else None]
    found["steps"] = steps_of(Chooser(ranks, group.device), cut)
    for row in (0, 2):
        broken_RV = whole_RV.clone()
        broken_RV[row, V - 1] = math.nan
        try:
            Chooser(ranks, group.device).choose(rows, cut(broken_RV), draw_of(rows)).wait("step 2")
        except LogitsError as error:
            found[f"nan {row}"] = str(error)
    Path(out, f"{group.rank}.json").write_text(json.dumps(found))
    group.stop()
