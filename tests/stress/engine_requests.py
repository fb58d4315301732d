"""Random requests with random cancellations, again and again with other seeds: every output as of the request alone.

    PYTHONPATH=tests python tests/stress/engine_requests.py [--count 10000] [--rounds 4] [--seed N]

The model is played by `tests/reading_runner.py`, whose answer changes with any page that is wrong. Every other round
reads each step before it plans the next (lag 0).
"""

from __future__ import annotations

import argparse
import random
import time

import torch
from many_requests import check_many


def main() -> None:
    """Print how each round ended; AssertionError in the first one that goes wrong, its seed printed before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    given = parser.parse_args()
    torch.set_num_threads(1)
    for place in range(given.rounds):
        seed, lag, begun = given.seed + place, 1 - place % 2, time.monotonic()
        print(f"--seed {seed}, lag {lag}: ", end="", flush=True)
        counts = check_many(seed, given.count, lag)
        ends = ", ".join(
            f"{count} {finish.value}" for finish, count in sorted(counts.items(), key=lambda one: one[0].value)
        )
        print(f"{counts.total()} requests ({ends}) in {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
