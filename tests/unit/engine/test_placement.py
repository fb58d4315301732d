from __future__ import annotations

import random

from gptoss_dist.engine.placement import Placement
from gptoss_dist.engine.request import Event, Finish, Request, Sampling

PAGE = 4


def request(name: str, tokens: int, first: int = 0, max_tokens: int = 4) -> Request:
    return Request(name, tuple(range(first, first + tokens)), Sampling(max_tokens))


def finish(placement: Placement, name: str) -> None:
    placement.follow(Event(name, (), Finish.cancelled))


def test_the_replica_with_the_least_work_takes_it():
    placement = Placement(3, None)
    assert [placement.place(request(str(number), 10, 100 * number)) for number in range(4)] == [0, 1, 2, 0]
    assert placement.work == (28, 14, 14)
    placement.follow(Event("1", (5,)))
    assert placement.work == (28, 3, 14), "its prompt is through"
    assert placement.place(request("long", 50, 1000)) == 1
    assert placement.place(request("short", 1, 2000)) == 2


def test_an_idle_replica_that_knows_the_prompt_takes_it():
    placement = Placement(2, PAGE)
    assert placement.place(request("a", 20)) == 0
    assert placement.place(request("b", 20, first=100)) == 1
    for name in "ab":
        finish(placement, name)
    assert placement.work == (0, 0)
    assert placement.place(request("again", 30, first=100)) == 1
    assert placement.work == (0, 10 + 4), "five of its pages are known"
    finish(placement, "again")
    assert placement.place(request("short", 3, first=100)) == 0, "less than a page is nothing"


def test_a_busy_replica_does_not_take_everything_that_begins_alike():
    placement = Placement(2, PAGE)
    places = [placement.place(request(str(number), 20, max_tokens=15)) for number in range(6)]
    assert sorted(places) == [0, 0, 0, 1, 1, 1]


def test_the_most_that_a_request_allows_does_not_outweigh_a_prefix():
    """Clients that name no limit may get the whole context, and hardly ever do."""
    placement = Placement(2, PAGE)
    for number in range(64):
        placement.place(request(f"earlier {number}", 4, 10_000 + 10 * number, max_tokens=100_000))
        placement.follow(Event(f"earlier {number}", (1,) * 50, Finish.stop))
    assert placement.place(request("long", 2000, max_tokens=100_000)) == 0
    assert placement.work[0] == 2000 + 53, "as long as the answers that ended lately"
    placement.follow(Event("long", (1,)))
    assert placement.place(request("other", 40, 5000, max_tokens=130_000)) == 1
    assert placement.place(request("alike", 2000, max_tokens=90_000)) == 0
    assert placement.place(request("alike again", 2000, max_tokens=90_000)) == 0
    finish(placement, "other")
    for name in ("long", "alike", "alike again"):
        placement.follow(Event(name, (1,) * 300))
    assert placement.work == (3 * 53, 0), "those that go on are as likely to go on as before"


def test_a_prefix_counts_up_to_where_it_differs():
    placement = Placement(2, PAGE)
    placement.place(request("a", 20))
    finish(placement, "a")
    other = Request("b", (*range(9), 999, *range(10, 20)), Sampling(4))
    assert placement.place(other) == 0
    assert placement.work == (20 - 8 + 4, 0)


def test_what_was_not_used_for_long_is_forgotten():
    placement = Placement(2, PAGE, remembered=4)
    placement.place(request("busy", 3, 500))
    assert placement.place(request("a", 8)) == 1
    finish(placement, "a")
    assert placement.place(request("b", 12, 100)) == 1
    finish(placement, "b")
    finish(placement, "busy")
    assert placement.place(request("a again", 8)) == 1, "its first page is still known"
    assert placement.work == (0, 8)


def test_work_comes_back_to_nothing_whatever_happens():
    chance = random.Random(1)
    placement = Placement(3, PAGE)
    left: dict[str, int] = {}
    for number in range(2000):
        one = request(str(number), chance.randrange(1, 30), 10 * chance.randrange(4), chance.randrange(1, 6))
        assert placement.place(one) == placement.replica(one.id)
        left[one.id] = one.sampling.max_tokens
        for name in list(left):
            left[name] -= 1
            end = Finish.length if left[name] == 0 else Finish.stop if chance.random() < 0.1 else None
            placement.follow(Event(name, (1,), end))
            assert (name in placement) == (end is None)
            if end:
                del left[name]
        assert len(placement) == len(left)
        assert all(work >= 0 for work in placement.work)
    for name in left:
        finish(placement, name)
    assert placement.work == (0, 0, 0)
    finish(placement, "unknown")
