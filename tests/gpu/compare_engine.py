"""The engine's step against the model's own forward, plan by plan: prefill, decode, layer by layer, graphs on and off.

    python tests/gpu/compare_engine.py WORLD PLAN [PLAN …] [--checkpoint DIR | --size 120b --layers 4 --experts 128]
                                       [--depths 1 2 36]

Starts WORLD ranks (torchrun) and for each plan (`tp`, `ep`, … or words joined by commas) runs, over one checkpoint and
after so many layers of it as `--depths` says (default: after each),

- truth: the model's own forward in float32, eager attention, experts unpacked by plain torch;
- own: the same in bfloat16;
- engine: the step with `kernels=auto` (on a CPU the references), in bfloat16, prompts by chunks while others decode.

An error is ‖found − truth‖ / ‖truth‖ over the logits of one token. The bound: each layer rounds its activations to
bfloat16 some 12 times on the way through (norm, qkv, rotation, attention, output, sum, and the same for the experts),
each time by a relative error of at most 2^-9; independent errors add as squares: sqrt(12 · layers) · 2^-9. A router may
choose another expert at a near-tie, which no such bound covers, and `own` does the same: so the median over the tokens
must be below the larger of the bound and 1.5 times the median of `own`. Then the greedy tokens of requests are compared
with graphs and without over the same buffers: equal, bit for bit; and how often the host waits for the GPU meanwhile is
counted, other than for the tokens of the step before: never.

Prints a table, and one JSON object as the last line. Ends with status 1 if a bound does not hold. Without a GPU it runs
in float32 on the CPU at small shapes, to show that the program itself works.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import gc
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parents[1])]

from step_checks import Paged, mixed_script, random_ids, run_script, whole_vocabulary

from gptoss_dist.config import compose_run
from gptoss_dist.engine.captured import CapturedSteps
from gptoss_dist.engine.graphs import CudaGraphs, NoGraphs
from gptoss_dist.engine.paged_engine import PagedEngine
from gptoss_dist.engine.reduce import choose_reducer
from gptoss_dist.engine.request import Request, Sampling
from gptoss_dist.engine.runner import PagedRunner
from gptoss_dist.engine.size import CacheSize
from gptoss_dist.engine.step import Step
from gptoss_dist.engine.take_weights import take_weights
from gptoss_dist.kernels.registry import choose_kernels, use_expert_kernel
from gptoss_dist.kernels.step_kernels import step_kernels
from gptoss_dist.launcher.env import read_rank_env
from gptoss_dist.log import set_up_logging
from gptoss_dist.model.synth import synthesize
from gptoss_dist.session import Session, open_session

LENGTHS, PROMPTS, CHUNK = (700, 150, 40), (670, 127, 9), 540
"""Around the window of 128 and pages of 16, in prefill and in decode; experts of few, hundreds and more tokens."""
PAGE_SIZE = 16
ROUNDINGS = 12
NOT_WORSE = 1.5
ON_GPU = torch.cuda.is_available()
GREEDY = 48 if ON_GPU else 6


def open_plan(checkpoint: str, plan: str, dtype: str, kernels: str) -> Session:
    words = [f"plan={plan}" if "=" not in plan.split(",")[0] else plan.split(",")[0], *plan.split(",")[1:]]
    base = ["model=gpt_oss_120b", f"model.path={checkpoint}", f"model.dtype={dtype}", f"kernels={kernels}"]
    return open_session(compose_run([*base, *words]), read_rank_env(os.environ))


def close(session: Session) -> None:
    session.group.barrier()
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()


@torch.no_grad()
def own_forward(session: Session, ids: list[torch.Tensor], layers: int) -> list[torch.Tensor]:
    """Logits of every token after the first `layers` layers, by the model's own forward, float32 on the CPU."""
    model: Any = session.loaded.model
    kept = model.model.layers
    model.model.layers, model.config.num_hidden_layers = kept[:layers], layers
    model.model.config.num_hidden_layers = layers
    device = session.group.device
    found = [model(input_ids=one[None].to(device), use_cache=False).logits[0].float().cpu() for one in ids]
    model.model.layers, model.config.num_hidden_layers = kept, len(kept)
    return found


def step_of(session: Session, paged: Paged, layers: int) -> tuple[Step, Any]:
    """The step over the first `layers` layers and empty pages."""
    ranks = session.ranks
    weights = take_weights(session.loaded, ranks.tp_rank)
    weights = dataclasses.replace(weights, layers=weights.layers[:layers])
    kernels = step_kernels(session.loaded.kernels.step, session.loaded.kernels.step_reason)
    group = ranks.tp_group if ranks.tp > 1 else None
    sums = choose_reducer(kernels, session.group, group, 64, weights.hidden, weights.dtype, weights.device)
    return Step(weights, kernels, paged.cache(weights), sums.reducer), weights


def by_step(session: Session, ids: list[torch.Tensor], layers: int) -> list[torch.Tensor]:
    """The same by the engine's step, a mixed script of chunks and decoding."""
    paged = Paged(ids, PAGE_SIZE, session.loaded.checkpoint.shape.sliding_window)
    step, weights = step_of(session, paged, layers)
    group = session.ranks.tp_group
    parts = run_script(step, paged, mixed_script(LENGTHS, PROMPTS, CHUNK), weights.device)
    return [whole_vocabulary(one, weights.split.head, group).float().cpu() for one in parts]


def errors(found: list[torch.Tensor], truth: list[torch.Tensor]) -> torch.Tensor:
    """The relative error of each token's logits."""
    pairs = zip(found, truth, strict=True)
    return torch.cat([(one - wanted).norm(dim=1) / wanted.norm(dim=1) for one, wanted in pairs])


def decoded_rows() -> torch.Tensor:
    """Which of all tokens were computed one by one."""
    rows = [torch.arange(length) >= prompt for length, prompt in zip(LENGTHS, PROMPTS, strict=True)]
    return torch.cat(rows)


class Unpadded(PagedRunner):
    """Kernel by kernel, every step with as many rows as it has sequences."""

    def __init__(self, loaded, world, ranks, conf, size) -> None:
        super().__init__(loaded, world, ranks, dataclasses.replace(conf, graphs=False), size)


class Played(Unpadded):
    """Steps over buffers, by graphs or by calls."""

    graphs = False

    def __init__(self, loaded, world, ranks, conf, size) -> None:
        super().__init__(loaded, world, ranks, conf, size)
        player = CudaGraphs(self._weights.device) if self.graphs else NoGraphs()
        self._captured = CapturedSteps(self._step, self._logits, self._weights, conf, size.full_pages, player)


class WithGraphs(Played):
    graphs = ON_GPU


class AfterPreparing(WithGraphs):
    """What preparing the graphs waits for does not count."""

    def __init__(self, loaded, world, ranks, conf, size) -> None:
        torch.cuda.set_sync_debug_mode("default")
        super().__init__(loaded, world, ranks, conf, size)
        torch.cuda.set_sync_debug_mode("warn")


def greedy(session: Session, runner: type[PagedRunner], ids: list[torch.Tensor]) -> dict[str, list[int]]:
    """Tokens of requests that run together."""
    conf, size = dataclasses.replace(session.run.engine, max_running=8, page_size=PAGE_SIZE), CacheSize(128, 128)
    engine = PagedEngine(
        session.loaded,
        session.group,
        session.ranks,
        conf,
        size,
        8,
        runner=runner(session.loaded, session.group, session.ranks, conf, size),
    )
    requests = [
        Request(str(number), tuple(one[:prompt].tolist()), Sampling(GREEDY + 7 * number, temperature=0))
        for number, (one, prompt) in enumerate(zip(ids, PROMPTS, strict=True))
    ]
    tokens: dict[str, list[int]] = {}
    for event in engine.stream(requests):
        tokens.setdefault(event.request_id, []).extend(event.tokens)
    engine.close()  # a process group waits, when it ends, for the graphs that hold its collectives
    return tokens


def count_waits(session: Session, ids: list[torch.Tensor]) -> list[str]:
    """The places in the engine where the host waited for the GPU while requests ran, once each."""
    if not ON_GPU:
        return []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        greedy(session, AfterPreparing, ids)
        torch.cuda.set_sync_debug_mode("default")
    return sorted(
        {f"{Path(one.filename).name}:{one.lineno}" for one in said if "called a synchronizing" in str(one.message)}
    )


def with_fast_kernels(session: Session) -> Session:
    """The same weights under the kernels that are compared: laid out anew, so that no other can read them again."""
    loaded, conf = session.loaded, compose_run(["kernels=auto"]).kernels
    chosen = choose_kernels(conf, session.group.device, loaded.checkpoint.packed)
    if loaded.checkpoint.packed:
        use_expert_kernel(loaded.model, chosen)
    return dataclasses.replace(session, loaded=dataclasses.replace(loaded, kernels=chosen))


def compare(checkpoint: str, plan: str, depths: list[int] | None = None) -> dict[str, Any]:
    """Everything about one plan."""
    low = "bfloat16" if ON_GPU else "float32"
    session = open_plan(checkpoint, plan, "float32", "reference")
    shape = session.loaded.checkpoint.shape
    ids, depths = random_ids(LENGTHS, shape.vocab, seed=5), depths or list(range(1, shape.layers + 1))
    depths = sorted({min(depth, shape.layers) for depth in depths})
    truth = {depth: own_forward(session, ids, depth) for depth in depths}
    close(session)
    del session
    session = open_plan(checkpoint, plan, low, "reference")
    own = {depth: errors(own_forward(session, ids, depth), truth[depth]) for depth in depths}
    session = with_fast_kernels(session)
    engine = {depth: errors(by_step(session, ids, depth), truth[depth]) for depth in depths}
    tokens = {one.__name__: greedy(session, one, ids) for one in (Unpadded, Played, WithGraphs)}
    decoded, last = decoded_rows(), depths[-1]
    equal = sum(tokens["Unpadded"][name] == tokens["WithGraphs"][name] for name in tokens["WithGraphs"])
    result = {
        "plan": plan,
        "ranks": session.group.world_size,
        "step": session.loaded.kernels.step,
        "by_layer": {str(depth): (own[depth].median().item(), engine[depth].median().item()) for depth in depths},
        "prefill": (own[last][~decoded].median().item(), engine[last][~decoded].median().item()),
        "decode": (own[last][decoded].median().item(), engine[last][decoded].median().item()),
        "largest": (own[last].max().item(), engine[last].max().item()),
        "graphs_equal": tokens["Played"] == tokens["WithGraphs"],
        "unpadded_equal": f"{equal} of {len(ids)}",
        "host_waits": count_waits(session, ids),
    }
    holds = [mine <= max(bound_of(depth), NOT_WORSE * other) for depth, other, mine in pairs_of(result)]
    result["holds"] = all(holds) and result["graphs_equal"]
    close(session)
    return result


def pairs_of(result: dict[str, Any]) -> list[tuple[int, float, float]]:
    """(layers, median error of `own`, of the engine) of everything that is bounded."""
    layers = [(int(depth), *pair) for depth, pair in result["by_layer"].items()]
    last = layers[-1][0]
    return [*layers, (last, *result["prefill"]), (last, *result["decode"])]


def bound_of(layers: int) -> float:
    """See the module; in float32 the unit of rounding is 2^-24."""
    return math.sqrt(ROUNDINGS * layers) * (2.0**-9 if ON_GPU else 2.0**-24 * 64)


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| plan | ranks | kernels | bound | prefill: own, engine | decode: own, engine | largest: own, engine "
        "| graphs = calls | = unpadded | host waits | holds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        pairs = " | ".join(f"{one[name][0]:.2e}, {one[name][1]:.2e}" for name in ("prefill", "decode", "largest"))
        lines.append(
            f"| {one['plan']} | {one['ranks']} | {one['step']} | {bound_of(max(map(int, one['by_layer']))):.1e} "
            f"| {pairs} | {one['graphs_equal']} | {one['unpadded_equal']} | {len(one['host_waits'])} | {one['holds']} |"
        )
        deep = ", ".join(f"{depth}: {own:.2e} / {mine:.2e}" for depth, (own, mine) in one["by_layer"].items())
        lines.append(f"  after so many layers, own / engine: {deep}")
    return "\n".join(lines)


def run_ranks(checkpoint: str, plans: list[str], depths: list[int] | None) -> int:
    """One rank's part; rank 0 prints, each plan as soon as it is known."""
    set_up_logging()
    faulthandler.register(signal.SIGTERM, chain=True)  # where a rank stood whose time was over
    results = []
    for plan in plans:
        begun = time.monotonic()
        results.append(compare(checkpoint, plan, depths))
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"{plan}: {time.monotonic() - begun:.1f} s\n{table(results[-1:])}", flush=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps({"compare_engine": results, "torch": torch.__version__, "gpu": gpu_name()}))
    return 0 if all(one["holds"] for one in results) else 1


def gpu_name() -> str:
    return torch.cuda.get_device_name() if ON_GPU else "none"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", type=int)
    parser.add_argument("plans", nargs="+")
    parser.add_argument("--checkpoint", help="a folder; without it a random one is written and removed again")
    parser.add_argument("--size", default="120b" if ON_GPU else "tiny")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--experts", type=int)
    parser.add_argument("--depths", type=int, nargs="+", help="compare after so many layers (default: after each)")
    given = parser.parse_args()
    if "RANK" in os.environ:
        return run_ranks(given.checkpoint, given.plans, given.depths)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = given.checkpoint or str(Path(folder) / "model")
        if not given.checkpoint:
            synthesize(given.size, Path(checkpoint), layers=given.layers, experts=given.experts)
        if given.world == 1:
            return run_ranks(checkpoint, given.plans, given.depths)
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={given.world}"]
        command = [*launch, __file__, str(given.world), *given.plans, "--checkpoint", checkpoint]
        command += ["--depths", *map(str, given.depths)] if given.depths else []
        return subprocess.run(command, check=False, env={**os.environ, "OMP_NUM_THREADS": "4"}).returncode


if __name__ == "__main__":
    sys.exit(main())
