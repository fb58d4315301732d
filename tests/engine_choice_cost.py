"""What it costs to choose the tokens of careful rows, without a model: `python tests/engine_choice_cost.py`.

So many requests of one kind choose a token from the whole vocabulary in every step. Prints a line of JSON for each
kind: calls of torch a step beside the draws and the cuts themselves (two and six kernels on a GPU), and milliseconds a
step on one core: the median of elapsed time, and the processor's own. A step before those that count takes in what is
new. The step of the model has chosen the tokens of quick rows, as a CUDA graph does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss_dist.engine import changes
from gptoss_dist.engine.choice import Chooser
from gptoss_dist.engine.logits import Logits
from gptoss_dist.engine.request import Request, Row, Sampling
from gptoss_dist.engine.sampler import Draw, Drawing, in_torch
from gptoss_dist.kernels import truncation_reference
from gptoss_dist.runtime.mesh import Ranks

V = 201_088
PROMPT, OUTPUT = 512, 512
LIKELY = 40
"""Tokens of each row that may be drawn at all, as with a trained model."""


class Half:
    """Allows the lower half of the vocabulary."""

    def __init__(self) -> None:
        self._allowed = torch.arange(V) < V // 2

    def start(self, prompt: tuple[int, ...]) -> Half:
        return self

    def allowed(self) -> torch.Tensor:
        return self._allowed

    def accept(self, token: int) -> None:
        return None


KINDS: dict[str, dict[str, object]] = {
    "greedy": {"temperature": 0.0},
    "top_p": {"top_p": 0.9},
    "top_k": {"top_k": 50},
    "min_p": {"min_p": 0.05},
    "all cuts": {"top_p": 0.9, "top_k": 50, "min_p": 0.05},
    "penalties": {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
    "300 biases": {"logit_bias": tuple((7 * token, 1.0) for token in range(300))},
    "logprobs": {"logprobs": 20},
    "constraint": {},
}


class Calls(TorchDispatchMode):
    """Counts what torch is asked for outside of the draws and cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._apart = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not self._apart
        return func(*args, **(kwargs or {}))

    def apart(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, in which nothing is counted."""

        def uncounted(*arguments: Any) -> Any:
            self._apart = True
            found = function(*arguments)
            self._apart = False
            return found

        return uncounted


def make_rows(kind: str, count: int) -> list[Row]:
    kinds = [name for name in KINDS if name != "greedy"] if kind == "mixed" else [kind]
    rows = []
    for number in range(count):
        name = kinds[number % len(kinds)]
        sampling = Sampling(**{"max_tokens": 4096, "seed": number, **KINDS[name]})
        prompt = tuple((number + 3 * place) % V for place in range(PROMPT))
        tokens = [*prompt, *((11 * number + 5 * place) % V for place in range(OUTPUT))]
        rows.append(Row(Request(str(number), prompt, sampling, Half() if name == "constraint" else None), tokens))
    return rows


def logits_of(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    logits_RV = torch.randn(count, V, generator=generator) - 40
    places = torch.randint(V, (count, LIKELY), generator=generator)
    return logits_RV.scatter_(1, places, torch.randn(count, LIKELY, generator=generator) * 2)


def measure(kind: str, count: int, steps: int) -> dict[str, object]:
    rows, calls = make_rows(kind, count), Calls()
    logits = Logits(logits_of(count), quick_R=torch.zeros(count, dtype=torch.int64))
    drawing = Drawing(calls.apart(in_torch().best_of_shard), in_torch().merge_shards)
    changes.truncate_on = lambda _: calls.apart(truncation_reference.truncate)
    chooser = Chooser(Ranks(1, 1, 0, 0, None), torch.device("cpu"), drawing)
    samplings = [row.request.sampling for row in rows]
    temperature_R = torch.tensor([one.temperature for one in samplings])
    seed_R = torch.tensor([one.seed for one in samplings])

    def step() -> None:
        draw = Draw(temperature_R, seed_R, torch.tensor([len(row.tokens) for row in rows]))
        tokens, _ = chooser.choose(rows, logits, draw).wait("a step")
        for row, token in zip(rows, tokens, strict=True):
            assert isinstance(row.tokens, list)
            row.tokens.append(token)
            chooser.accept(row.request, token or 0)

    step()
    seconds, used = [], time.process_time()
    for _ in range(steps):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    used = time.process_time() - used
    with calls:
        step()
    return {
        "kind": kind,
        "rows": count,
        "calls": calls.count,
        "median_ms": round(1000 * statistics.median(seconds), 1),
        "processor_ms": round(1000 * used / steps, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=[*KINDS, "mixed"], choices=[*KINDS, "mixed"])
    words = parser.parse_args()
    torch.set_num_threads(1)
    for kind in words.kinds:
        print(json.dumps(measure(kind, words.rows, words.steps)), flush=True)


if __name__ == "__main__":
    main()
