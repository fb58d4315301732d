"""Load one checkpoint by several plans on the ranks of this torchrun world, and write what each plan gave to a file.

    torchrun --standalone --nproc_per_node=N tests/gpu/plan_probe.py CHECKPOINT OUT PLAN [PLAN …]

PLAN is words of a run joined by commas (`plan=tp` or `plan=dp_tp,plan.dp=2`). Rank 0 writes OUT/PLAN-N.pt: bytes held
and planned by rank, seconds, greedy tokens, and the logits behind them; `compare_plans.py` reads them.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path

import torch

from gptoss_dist.config import compose_run
from gptoss_dist.engine.request import Request, Sampling
from gptoss_dist.harmony.conversation import render
from gptoss_dist.launcher.env import read_rank_env
from gptoss_dist.log import set_up_logging
from gptoss_dist.session import Session, open_session

PROMPT = "Explain how expert parallelism works in large language models."
TOKENS = 64


def probe(session: Session) -> dict[str, object]:
    prompt = tuple(render([{"role": "user", "content": PROMPT}]))
    generate(session, prompt, 4)
    tokens, first_s, per_second = generate(session, prompt, TOKENS)
    loaded, group = session.loaded, session.group
    sizes = group.all_gather_object((loaded.weight_bytes, loaded.planned.weights))
    whole = torch.tensor([prompt + tuple(tokens)], device=group.device)
    with torch.inference_mode():
        logits = loaded.model(input_ids=whole, logits_to_keep=TOKENS + 1).logits[0, :-1].float().cpu()
    return {
        "plan": loaded.plan.name,
        "dp": loaded.degrees.dp,
        "tp": loaded.degrees.tp,
        "held": [held for held, _ in sizes],
        "planned": [planned for _, planned in sizes],
        "kernels": (loaded.kernels.attention, loaded.kernels.experts.value),
        "load_s": loaded.seconds,
        "first_s": first_s,
        "tokens_per_s": per_second,
        "tokens": tokens,
        "logits": logits,
    }


def generate(session: Session, prompt: tuple[int, ...], count: int) -> tuple[list[int], float, float]:
    """Greedy tokens, seconds to the first one, tokens a second after it; as rank 0 saw them, on every rank."""
    request = Request(f"probe-{count}", prompt, Sampling(max_tokens=count, temperature=0))
    started = time.perf_counter()
    moments, tokens = [], []
    for event in session.engine.stream([request]):
        tokens += event.tokens
        moments += [time.perf_counter()] * len(event.tokens)
    found = (tokens, 0.0, 0.0)
    if session.group.rank == 0:
        found = (tokens, moments[0] - started, (len(moments) - 1) / (moments[-1] - moments[0]))
    return session.group.broadcast_object(found)


def main(checkpoint: str, out: str, plans: list[str]) -> None:
    env = read_rank_env(os.environ)
    set_up_logging()
    Path(out).mkdir(parents=True, exist_ok=True)
    for words in plans:
        run = compose_run(["model=gpt_oss_120b", f"model.path={checkpoint}", *words.split(",")])
        session = open_session(run, env)
        result = probe(session)
        if session.group.rank == 0:
            name = f"{words.replace('=', '-').replace(',', '-')}-{session.group.world_size}.pt"
            torch.save({"words": words, "world_size": session.group.world_size, **result}, Path(out) / name)
        group = session.group
        group.barrier()
        del session, result
        gc.collect()
        torch.cuda.empty_cache()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
