"""Where the time of a step goes: each step played many times, then once under the profiler.

    python tests/gpu/profile_step.py [--checkpoint DIR | --size 120b --layers 4] [--batches 1 8 64] [--context 1024]
        [--independent]
    python tests/gpu/profile_step.py [--checkpoint DIR | --size 120b --layers 4] --prefill 8192 2048
    torchrun --nproc_per_node=4 tests/gpu/profile_step.py --checkpoint DIR --plan tp

Decode steps, one for each batch, are played from their CUDA graphs, choice of the tokens included; prefill steps, each
one chunk of so many tokens of a fresh prompt, by calls, as serving plays them. With `--prefill` alone there are no
decode steps. Prints the median time of a step; the time a layer takes (the step less that of a model of half the
layers, so that what stands around the layers falls out); how long the host needs to launch a step, which is what
counts where it is longer, and where it spends that; and the kernels by their share. The last line is one JSON object.
The cache holds noise: contexts have the right length and no meaning. Without a GPU it plays the same steps by calls, at
small shapes, to show that the program itself works.
"""

from __future__ import annotations

import argparse
import cProfile
import dataclasses
import json
import os
import pstats
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from gptoss_dist.config import compose_run
from gptoss_dist.engine.captured import CapturedSteps
from gptoss_dist.engine.decode_buffers import DecodeInput
from gptoss_dist.engine.graphs import CudaGraphs, DecodeSteps, NoGraphs
from gptoss_dist.engine.runner import PagedRunner
from gptoss_dist.engine.size import CacheSize
from gptoss_dist.engine.step import Step
from gptoss_dist.engine.step_input import Chunks, Places, StepInput
from gptoss_dist.kernels import dependent_launch
from gptoss_dist.launcher.env import read_rank_env
from gptoss_dist.log import set_up_logging
from gptoss_dist.model.synth import synthesize
from gptoss_dist.session import Session, open_session

ON_GPU = torch.cuda.is_available()
TIMES = 7 if ON_GPU else 3
ROUND = 10
"""Steps between two looks at the clock."""
PAGE_SIZE = 16
ROWS = 18
"""Kernels of the profile that are printed."""
HOST_ROUNDS, HOST_ROWS = 10, 30
"""Launches under Python's profiler, and functions that are printed."""

Play = Callable[[], object]
"""Plays one step."""


class Bench:
    """Decode steps of one size over the first layers of a model."""

    def __init__(self, session: Session, batch: int, context: int) -> None:
        pages = -(-(context + 1) // PAGE_SIZE)
        self._batch, self._context, self._pages = batch, context, pages
        self._conf = dataclasses.replace(session.run.engine, graphs=False, max_running=batch, page_size=PAGE_SIZE)
        self._device = session.group.device
        size = CacheSize(batch * pages, batch * pages)
        self._runner = PagedRunner(session.loaded, session.group, session.ranks, self._conf, size)
        for layer in self._runner._pages:
            layer.normal_()

    def steps(self, layers: int) -> DecodeSteps:
        """The step over the first `layers` layers, prepared."""
        runner = self._runner
        weights = dataclasses.replace(runner._weights, layers=runner._weights.layers[:layers])
        whole = runner._step
        step = Step(weights, whole._kernels, whole._cache[:layers], runner.reducer)
        player = CudaGraphs(self._device) if ON_GPU else NoGraphs()
        # One table width, that of a model with its whole context, as serving has it.
        width = max(self._pages, weights.context // PAGE_SIZE) if ON_GPU else self._pages
        return CapturedSteps(step, runner._logits, weights, self._conf, width, player).decode

    def given(self) -> DecodeInput:
        """Every sequence on pages of its own."""
        rows, device = torch.arange(self._batch, device=self._device), self._device
        table = (rows[:, None] * self._pages + torch.arange(self._pages, device=device)).int()
        slot = table[:, self._context // PAGE_SIZE].long() * PAGE_SIZE + self._context % PAGE_SIZE
        ids = torch.randint(0, self._runner._weights.vocabulary, (self._batch,), device=device)
        position = torch.full((self._batch,), self._context, dtype=torch.int32, device=device)
        temperature = torch.zeros(self._batch, device=device)
        return DecodeInput(ids, position, slot, slot, table, table, temperature, rows, rows)


class PrefillBench:
    """Steps of one chunk, the first `tokens` tokens of a prompt of as many, over the first layers of a model."""

    def __init__(self, session: Session, tokens: int) -> None:
        self._tokens, self._pages = tokens, -(-tokens // PAGE_SIZE)
        self._device = session.group.device
        room = max(tokens, session.run.engine.max_running)
        conf = dataclasses.replace(session.run.engine, graphs=False, step_tokens=room, page_size=PAGE_SIZE)
        self._runner = PagedRunner(
            session.loaded, session.group, session.ranks, conf, CacheSize(self._pages, self._pages)
        )

    def step(self, layers: int) -> Step:
        """The first `layers` layers."""
        runner = self._runner
        weights = dataclasses.replace(runner._weights, layers=runner._weights.layers[:layers])
        return Step(weights, runner._step._kernels, runner._step._cache[:layers], runner.reducer)

    def given(self) -> StepInput:
        """Random tokens, of which the last chooses one, kept on pages in order."""
        device, tokens = self._device, self._tokens

        def ints(*values: int) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        table = torch.arange(self._pages, dtype=torch.int32, device=device)[None]
        places = Places(torch.arange(tokens, device=device), table[:0], table)
        return StepInput(
            ids_T=torch.randint(0, self._runner._weights.vocabulary, (tokens,), device=device),
            position_T=torch.arange(tokens, dtype=torch.int32, device=device),
            decoding=0,
            full=places,
            sliding=places,
            chunks=Chunks(ints(0), ints(tokens), ints(0), tokens),
            sampled_R=torch.tensor([tokens - 1], device=device),
        )


def seconds_of(play: Play) -> float:
    """Median of a step, by events of the device on a GPU, where steps follow each other as in serving.

    One at a time, each after a pause of the device, they took up to a fifth longer, and differently long.
    """
    for _ in range(3):
        play()
    taken = []
    for _ in range(TIMES):
        if ON_GPU:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(ROUND):
                play()
            end.record()
            end.synchronize()
            taken.append(start.elapsed_time(end) / 1e3 / ROUND)
        else:
            begun = time.perf_counter()
            play()
            taken.append(time.perf_counter() - begun)
    return sorted(taken)[len(taken) // 2]


def launch_seconds_of(play: Play) -> float:
    """Median time of the host until a step is launched, with nothing before it on the device."""
    taken = []
    for _ in range(TIMES):
        if ON_GPU:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        play()
        taken.append(time.perf_counter() - begun)
    return sorted(taken)[len(taken) // 2]


def kernels_of(play: Play) -> list[tuple[str, int, float]]:
    """(name, calls, µs in all) of one step, the longest first."""
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ON_GPU else [])]
    with profile(activities=kinds) as recorded:
        play()
        if ON_GPU:
            torch.cuda.synchronize()
    found = []
    for one in recorded.key_averages():
        spent = one.self_device_time_total if ON_GPU else one.self_cpu_time_total
        if spent > 0 and (not ON_GPU or one.device_type == torch.autograd.DeviceType.CUDA):
            found.append((one.key, one.count, spent))
    return sorted(found, key=lambda one: -one[2])


def host_of(play: Play) -> list[tuple[str, int, float]]:
    """(function, calls, own µs) of the host in one launch, the longest first; Python's profiler makes all longer."""
    recorded = cProfile.Profile()
    for _ in range(HOST_ROUNDS):
        if ON_GPU:
            torch.cuda.synchronize()
        recorded.runcall(play)
    # (file, line, function) -> (primitive calls, calls, own s, s with callees, callers); pstats has no type for it
    rows: dict[tuple[str, int, str], tuple[Any, ...]] = pstats.Stats(recorded).stats  # type: ignore[attr-defined]
    found = [
        (f"{Path(file).name}:{line} {name}" if line else name, calls // HOST_ROUNDS, own * 1e6 / HOST_ROUNDS)
        for (file, line, name), (_, calls, own, *_) in rows.items()
    ]
    return sorted(found, key=lambda one: -one[2])[:HOST_ROWS]


def times_of(layers: int, whole: Play, half: Play) -> dict[str, Any]:
    """A step's time, a layer's, and the kernels; `half` plays the first half of the layers."""
    step_s = seconds_of(whole)
    layer_s = (step_s - seconds_of(half)) / (layers - layers // 2)
    kernels = kernels_of(whole)
    return {
        "layers": layers,
        "step_us": step_s * 1e6,
        "layer_us": layer_s * 1e6,
        "launch_us": launch_seconds_of(whole) * 1e6,
        "kernels": [[name, calls, spent] for name, calls, spent in kernels[:ROWS]],
        "launches": sum(calls for _, calls, _ in kernels),
        "host": host_of(whole),
    }


@torch.no_grad()
def measure(session: Session, batch: int, context: int) -> dict[str, Any]:
    """A decode step of `batch` sequences."""
    layers = session.loaded.checkpoint.shape.layers
    bench = Bench(session, batch, context)
    given, whole, half = bench.given(), bench.steps(layers), bench.steps(layers // 2)
    found = times_of(layers, lambda: whole.run(given), lambda: half.run(given))
    return {"kind": "decode", "batch": batch, "context": context, **found, "prepared": whole.summary}


@torch.no_grad()
def measure_prefill(session: Session, tokens: int) -> dict[str, Any]:
    """A prefill step of `tokens` tokens."""
    layers = session.loaded.checkpoint.shape.layers
    bench = PrefillBench(session, tokens)
    given, whole, half = bench.given(), bench.step(layers), bench.step(layers // 2)
    return {"kind": "prefill", "tokens": tokens, **times_of(layers, lambda: whole(given), lambda: half(given))}


def show(result: dict[str, Any]) -> str:
    """A table in Markdown."""
    whole = sum(spent for _, _, spent in result["kernels"]) or 1.0
    if result["kind"] == "decode":
        what, told = f"batch {result['batch']}, context {result['context']}", result["prepared"]
    else:
        what, told = f"prefill of {result['tokens']} tokens", "by calls"
    lines = [
        f"\n{what}, {result['layers']} layers: step {result['step_us']:.0f} µs, a layer {result['layer_us']:.1f} µs, "
        f"launched in {result['launch_us']:.0f} µs, {result['launches']} launches; {told}",
        "| µs a layer | calls a step | µs a call | share | kernel |",
        "|---|---|---|---|---|",
    ]
    for name, calls, spent in result["kernels"]:
        lines.append(
            f"| {spent / result['layers']:.2f} | {calls} | {spent / calls:.2f} | {100 * spent / whole:.0f} % "
            f"| {name[:90]} |"
        )
    lines += ["", "| own µs of the host | calls | function |", "|---|---|---|"]
    lines += [f"| {spent:.0f} | {calls} | {name} |" for name, calls, spent in result["host"]]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint")
    parser.add_argument("--size", default="120b" if ON_GPU else "tiny")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--plan", default="single")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--batches", type=int, nargs="+", help="sequences of decode steps")
    parser.add_argument("--prefill", type=int, nargs="+", default=[], help="tokens of prefill steps")
    parser.add_argument("--context", type=int, default=1024 if ON_GPU else 100)
    parser.add_argument("--independent", action="store_true", help="no programmatic dependent launch")
    given = parser.parse_args()
    batches = given.batches or ([] if given.prefill else [1, 8, 64] if ON_GPU else [1, 3])
    dependent_launch.enable(not given.independent)
    set_up_logging()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = given.checkpoint or str(Path(folder) / "model")
        if not given.checkpoint:
            synthesize(given.size, Path(checkpoint), layers=given.layers)
        words = ["model=gpt_oss_120b", f"model.path={checkpoint}", f"plan={given.plan}", f"kernels={given.kernels}"]
        session = open_session(compose_run(words), read_rank_env(os.environ))
        results = [measure(session, batch, given.context) for batch in batches]
        results += [measure_prefill(session, tokens) for tokens in given.prefill]
    if session.group.rank == 0:
        for result in results:
            print(show(result))
        gpu = torch.cuda.get_device_name() if ON_GPU else "none"
        facts = {"torch": torch.__version__, "gpu": gpu, "plan": given.plan, "ranks": session.group.world_size}
        print(json.dumps({"profile_step": results, **facts}))
    session.close()


if __name__ == "__main__":
    sys.exit(main())
