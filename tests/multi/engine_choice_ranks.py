"""What each rank of `test_engine_choice.py` runs: tokens chosen from a vocabulary that is cut over the ranks."""

from __future__ import annotations

import json
import math
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch

from gptoss_dist.engine.choice import Chooser, Row
from gptoss_dist.engine.logits import Logits
from gptoss_dist.engine.request import Request, Sampling
from gptoss_dist.engine.sampler import Draw
from gptoss_dist.errors import GptOssDistError
from gptoss_dist.launcher.env import read_rank_env
from gptoss_dist.runtime.dist import start
from gptoss_dist.runtime.mesh import make_ranks

V = 61
KINDS: list[dict[str, object]] = [
    {},
    {"temperature": 0.0},
    {"top_p": 0.8},
    {"temperature": 0.0, "logprobs": 2},
    {"presence_penalty": 1.0},
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


def logits_of(rows: int) -> torch.Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(4)) * 2


def draw_of(rows: list[Row]) -> Draw:
    samplings = [row.request.sampling for row in rows]
    return Draw(
        torch.tensor([one.temperature for one in samplings]),
        torch.tensor([one.seed for one in samplings]),
        torch.tensor([len(row.tokens) for row in rows]),
    )


def main(out: str) -> None:
    env = read_rank_env(os.environ)
    group = start("cpu", env, timeout=timedelta(seconds=60))
    ranks = make_ranks(group, dp=1, tp=group.world_size)
    width = -(-V // ranks.tp)  # the last rank has fewer
    widths = tuple(min(width, V - width * rank) for rank in range(ranks.tp))
    first = width * ranks.tp_rank
    rows = make_rows()
    whole_RV = logits_of(len(rows))
    cut_RC = whole_RV[:, first : first + widths[ranks.tp_rank]].contiguous()
    chooser = Chooser(ranks, group.device)
    found: dict[str, object] = {}
    # A rank's own whole logits may differ in the last bits: the first rank's count.
    disturbed_RV = whole_RV + (100.0 * torch.randn(whole_RV.shape) if ranks.tp_rank else 0.0)
    for name, logits in (
        ("whole", Logits(disturbed_RV)),
        ("cut", Logits(cut_RC, first, widths, ranks.tp_group)),
        ("half", Logits(cut_RC.bfloat16(), first, widths, ranks.tp_group)),
    ):
        tokens, logprobs = chooser.choose(rows, logits, draw_of(rows)).wait("step 1")
        tops = {one: [token for token, _ in value.top] for one, value in logprobs.items()}
        found[name] = [tokens, tops if name == "cut" else None]
    for row in (0, 2):
        broken_RC = cut_RC.clone()
        if ranks.tp_rank == ranks.tp - 1:
            broken_RC[row, 0] = math.nan
        try:
            chooser.choose(rows, Logits(broken_RC, first, widths, ranks.tp_group), draw_of(rows)).wait("step 2")
        except GptOssDistError as error:
            found[f"nan {row}"] = str(error)
    Path(out, f"{group.rank}.json").write_text(json.dumps(found))
    group.stop()


if __name__ == "__main__":
    main(sys.argv[1])
