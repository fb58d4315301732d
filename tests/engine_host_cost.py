"""How long the host takes for a step of the paged engine, without a model: `python tests/engine_host_cost.py`.

So many sequences decode at once, each with a prompt of so many tokens; the model is replaced by tokens that
are chosen already, on the CPU, so that next to nothing but the engine's own work is left. Prints one line of JSON:
milliseconds a step, the median and the 90th percentile, of decode steps and of the step that takes in a prompt that
fills it.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import platform
import statistics
import time

import torch
from reading_runner import Answers, reading_engine

from gptoss_dist.engine.batch import Batch
from gptoss_dist.engine.logits import Logits
from gptoss_dist.engine.request import Request, Sampling
from gptoss_dist.engine.size import CacheSize


class NullRunner:
    """Logits without a model, and tokens that are chosen already, as those of a CUDA graph are."""

    def __init__(self, rows: int) -> None:
        self._logits, self._tokens = torch.zeros(rows, 8), torch.zeros(rows, dtype=torch.int64)

    def run(self, batch: Batch) -> Logits:
        rows = len(batch.sampled)
        return Logits(self._logits[:rows], quick_R=self._tokens[:rows])


def measure(sequences: int, context: int, steps: int, profile: bool) -> dict[str, object]:
    page_size, step_tokens = 16, 2048
    longest = steps + 100 + 2 * sequences * context // step_tokens  # the first decode while the others' prompts go in
    pages = (sequences + 2) * ((context + step_tokens + longest) // page_size + 2)
    engine = reading_engine(
        Answers(window=128),
        CacheSize(pages, pages),
        runner=NullRunner(sequences + 1),
        vocabulary=2**24,
        context=2**17,
        page_size=page_size,
        step_tokens=step_tokens,
        max_running=sequences + 1,
    )
    sampling = Sampling(longest, temperature=0)
    for number in range(sequences):
        prompt = tuple(range(number * context, (number + 1) * context))
        engine.submit(Request(str(number), prompt, sampling))
    while len(engine.scheduler.running) < sequences or engine.scheduler.running[-1].is_prefilling:
        engine.step()
    seconds = []
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    for _ in range(steps):
        started = time.perf_counter()
        events = engine.step()
        seconds.append(time.perf_counter() - started)
        assert len(events) == sequences
    if profile:
        profiler.disable()
        profiler.print_stats("tottime")
    engine.submit(Request("prompt", tuple(range(2**23, 2**23 + step_tokens - sequences)), Sampling(1)))
    started = time.perf_counter()
    engine.step()
    return {
        "machine": platform.processor() or platform.machine(),
        "sequences": sequences,
        "context": context,
        "median_ms": round(1000 * statistics.median(seconds), 3),
        "p90_ms": round(1000 * sorted(seconds)[int(0.9 * len(seconds))], 3),
        "prompt_ms": round(1000 * (time.perf_counter() - started), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--profile", action="store_true")
    words = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(measure(words.sequences, words.context, words.steps, words.profile)))


if __name__ == "__main__":
    main()
