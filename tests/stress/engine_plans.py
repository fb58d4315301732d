"""All conversations of the toy by every plan at 1, 2 and 4 ranks: the tokens of backend=transformers.

    python tests/stress/engine_plans.py [--ranks 1 2 4]

Greedy, float32, on the CPU. At each number of ranks once with a cache in which requests give way to each other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from gptoss_dist.model.tiny import tiny_checkpoint

PROGRAM = Path(__file__).parents[1] / "multi" / "engine_ranks.py"
SMALL_CACHE = "engine.cache_tokens=400,engine.page_size=8,engine.step_tokens=64,engine.max_running=8"
PLANS = {
    1: ("plan=single",),
    2: ("plan=tp", "plan=ep", "plan=tp_ep", "plan=dp_tp"),
    4: ("plan=tp", "plan=ep", "plan=tp_ep", "plan=dp_tp"),
}


def outputs_of(ranks: int, plans: list[str], folder: Path) -> list[dict[str, list[int]]]:
    """What each plan gave."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(PROGRAM), str(folder), *plans], env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise AssertionError(f"{ranks} ranks, {plans}: {done.stdout}{done.stderr}")
    return [json.loads((folder / f"{plan}.json").read_text()) for plan in plans]


def main() -> None:
    """Print a line for each plan; AssertionError that names the first that differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", choices=tuple(PLANS), default=tuple(PLANS))
    given = parser.parse_args()
    tiny_checkpoint()
    with tempfile.TemporaryDirectory() as folder:
        reference = "plan=single,backend=transformers"
        (wanted,) = outputs_of(1, [reference], Path(folder))
        print(f"{reference}: {len(wanted)} conversations, {sum(map(len, wanted.values()))} tokens", flush=True)
        for ranks in given.ranks:
            plans = [*PLANS[ranks], *(f"{plan},{SMALL_CACHE}" for plan in PLANS[ranks])]
            for plan, found in zip(plans, outputs_of(ranks, plans, Path(folder)), strict=True):
                assert found == wanted, (ranks, plan)
                print(f"{ranks} ranks, {plan}: equal", flush=True)


if __name__ == "__main__":
    main()
