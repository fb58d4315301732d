"""Two dozen streaming clients on the toy's two ranks, a third of whose requests are left in the middle."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator

import httpx
import pytest
from serve_ranks import Server
from server_load import Load, ask_alone, bodies, resident_mb, run_load

from gptoss_dist.model.tiny import tiny_checkpoint

pytestmark = pytest.mark.multi
CLIENTS = 24
MOST_GROWTH_MB = 24.0


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    tiny_checkpoint()
    one = Server(tmp_path, "job.model_name=openai/gpt-oss-20b", "job.date=null")
    try:
        yield one.wait_until_it_serves()
    finally:
        one.close()


def is_enough(load: Load) -> bool:
    return bool(load.wrong) or (load.finished >= CLIENTS and load.left >= CLIENTS / 4)


def check(load: Load, server: Server) -> None:
    print(f"finished {load.finished}, left {load.left}, tokens {load.tokens}")
    assert not load.wrong, load.wrong[:3]
    assert load.refused == 0
    deadline = time.monotonic() + 60
    while server.held_pages() or server.metrics()["gptoss_requests_open"]:
        assert time.monotonic() < deadline, "pages are leaked"
        time.sleep(0.05)


def test_those_who_stay_get_what_they_would_get_alone_and_nothing_leaks(server: Server):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    asked = bodies()[::3]
    alone = asyncio.run(ask_alone(server.url, asked))
    check(asyncio.run(run_load(server.url, asked, alone, CLIENTS, is_enough, seed)), server)
    ranks = server.ranks()
    before = {rank: resident_mb(pid) for rank, pid in ranks.items()}
    check(asyncio.run(run_load(server.url, asked, alone, CLIENTS, is_enough, seed + 1)), server)
    after = {rank: resident_mb(pid) for rank, pid in ranks.items()}
    print(f"memory before {before}, after {after} MiB")
    assert all(after[rank] - before[rank] < MOST_GROWTH_MB for rank in ranks)
    assert len(ranks) == 2
    assert httpx.get(f"{server.url}/ready").status_code == 200
