"""What each rank of `test_step_ranks.py` runs: the engine's step against the model's own forward, plan after plan."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from step_checks import Paged, mixed_script, random_ids, run_script, whole_vocabulary

from gptoss_dist.config import compose_run
from gptoss_dist.engine.logits import Logits
from gptoss_dist.engine.quick import quick_tokens
from gptoss_dist.engine.reduce import choose_reducer
from gptoss_dist.engine.sampler import Draw, drawing_on
from gptoss_dist.engine.step import Step
from gptoss_dist.engine.take_weights import take_weights
from gptoss_dist.errors import GptOssDistError
from gptoss_dist.kernels.step_kernels import step_kernels
from gptoss_dist.launcher.env import read_rank_env
from gptoss_dist.runtime.dist import RankGroup
from gptoss_dist.runtime.watch import Watch
from gptoss_dist.session import Session, open_session

LENGTHS = (45, 21, 30)
PROMPTS = (33, 16, 9)
CHUNK = 11
PAGE_SIZE = 4
"""Chunks of 11 tokens over pages of 4 and a window of 16: both edges are crossed in prefill and in decode."""


@dataclass(frozen=True)
class StepCase:
    """One way to load one checkpoint."""

    name: str
    checkpoint: str
    words: tuple[str, ...]
    conf: str | None = None


@torch.no_grad()
def compare(session: Session) -> dict[str, Any]:
    """Logits of a mixed script by the step, and of each sequence alone by the model's own forward."""
    loaded, ranks = session.loaded, session.ranks
    ids = random_ids(LENGTHS, loaded.checkpoint.shape.vocab, seed=1 + ranks.dp_rank)
    before = [loaded.model(input_ids=one[None]).logits[0] for one in ids]
    weights = take_weights(loaded, ranks.tp_rank)
    kernels = step_kernels("reference")
    group = ranks.tp_group if ranks.tp > 1 else None
    sums = choose_reducer(kernels, session.group, group, 8, weights.hidden, weights.dtype, weights.device)
    paged = Paged(ids, PAGE_SIZE, weights.window)
    step = Step(weights, kernels, paged.cache(weights), sums.reducer)
    parts = run_script(step, paged, mixed_script(LENGTHS, PROMPTS, CHUNK), weights.device)
    found = [whole_vocabulary(one, weights.split.head, ranks.tp_group) for one in parts]
    tokens = [greedy(session, one, weights.split.head, weights.head_first) for one in parts]
    after = [loaded.model(input_ids=one[None]).logits[0] for one in ids]
    return {
        "wanted": before,
        "found": found,
        "after": after,
        "tokens": tokens,
        "split": weights.split,
        "held": sum(one.nbytes for one in loaded.model.parameters()),
    }


def greedy(session: Session, part: torch.Tensor, is_cut: bool, first: int) -> torch.Tensor:
    """The likeliest token of each row, found shard by shard."""
    ranks, device, rows = session.ranks, part.device, len(part)
    widths = tuple(ranks.tp * [part.shape[1]]) if is_cut else ()
    logits = Logits(part, first, widths, ranks.tp_group)
    zeros = torch.zeros(rows, dtype=torch.int64)
    return quick_tokens(drawing_on(device), logits, Draw(torch.zeros(rows), zeros, zeros))


def measure(case: StepCase) -> dict[str, Any]:
    words = ["model=gpt_oss_20b", f"model.path={case.checkpoint}", "cluster.device=cpu", "cluster.log_level=error"]
    run = compose_run([*words, "model.dtype=float32", *case.words], Path(case.conf) if case.conf else None)
    session = open_session(run, read_rank_env(os.environ))
    try:
        result = compare(session)
    except GptOssDistError as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    session.group.barrier()
    return result


def measure_steps(cases: list[StepCase], out: str, watch: Watch | None, group: RankGroup | None) -> None:
    """Body of a rank: every case after the other, one file a case and rank."""
    torch.set_num_threads(1)
    for case in cases:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.save(measure(case), Path(out) / f"{case.name}-{group.rank if group else 0}.pt")
