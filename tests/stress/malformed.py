"""Thousands of malformed bodies to a scripted server: `PYTHONPATH=tests python tests/stress/malformed.py`."""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

import httpx
from live_server import FINAL, serving
from malformed_bodies import VALID, send_all


def main() -> None:
    """Print how often each status came; the first wrong answer ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**9))
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, serving([{"harmony": FINAL.format("Hello.")}], Path(folder)) as live:
        statuses = send_all(live.url, args.seed, args.count)
        live.wait_until(lambda: live.held_pages() == 0)
        assert httpx.get(f"{live.url}/ready").status_code == 200
        assert httpx.post(f"{live.url}{VALID[0][0]}", json=VALID[0][1], timeout=30).status_code == 200
    print(f"{args.count} bodies in {time.monotonic() - started:.0f} s, statuses {dict(statuses)}; the server is there")


if __name__ == "__main__":
    main()
