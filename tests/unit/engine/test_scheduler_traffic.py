"""Random traffic through the scheduler: every request gets what it would get alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import scheduled_world
from scheduled_world import Traffic, World, trace

from gptoss_dist.engine.page_needs import ample_sliding_pages

CROWDED = {
    "pages of one token": (1, 88, 60, 7, 12, 5),
    "window below a page": (8, 14, 14, 5, 16, 6),
    "window of one": (4, 24, 18, 1, 16, 6),
    "window of two pages and a half": (4, 24, 20, 10, 16, 6),
    "few sliding pages": (4, 40, 12, 10, 24, 6),
    "a token for each": (4, 26, 24, 9, 4, 4),
    "long chunks": (4, 26, 24, 12, 200, 8),
}


@pytest.mark.parametrize(
    ("name", "lag"), [*((name, 1) for name in CROWDED), ("window below a page", 0), ("a token for each", 0)]
)
def test_random_traffic_gives_every_request_what_it_would_get_alone(name: str, lag: int):
    world = World(*CROWDED[name], lag)
    carry_on(world, seed=len(name))


def test_so_does_random_traffic_that_is_held_back_beside_decodes():
    window_of_one = CROWDED["window of one"]
    world = World(*window_of_one, mixed_step_tokens=window_of_one[-1] + 1)
    carry_on(world, seed=3)
    assert world.seen["held back"] > 100


def carry_on(world: World, seed: int) -> None:
    traffic = Traffic(world, seed)
    for _ in range(2000):
        traffic.step()
    world.run()
    world.verify_outputs()
    states = ("running", "waiting", "given way")
    assert all(world.seen[f"cancelled {state}"] for state in states), world.seen
    assert world.seen["began behind a window"] > 20
    assert world.seen["again behind a window"] > 2
    assert world.scheduler.preemptions > 10
    assert world.full.evictions > 50
    assert world.sliding.evictions > 50


def test_ample_sliding_pages_make_nobody_give_way():
    for seed, (window, page_size, step_tokens, running) in enumerate([(10, 4, 40, 5), (1, 4, 16, 8), (16, 4, 9, 9)]):
        pages = ample_sliding_pages(window, page_size, step_tokens, running)
        world = World(page_size, 300, pages, window, step_tokens, running, lag=0)
        traffic = Traffic(world, seed)
        for _ in range(300):
            traffic.step()
            plan = world.plans[-1]
            full = sum(count for _, _, count, _ in plan) == step_tokens or len(plan) == running
            assert full or not world.scheduler.waiting, "there are tokens and a place, and somebody waits"
        world.run()
        world.verify_outputs()
        assert world.scheduler.preemptions == 0


def test_ranks_that_hash_differently_decide_the_same():
    def rank(hash_seed: str) -> str:
        variables = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, scheduled_world.__file__]
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout

    assert rank("1") == rank("2") == trace() + "\n"
