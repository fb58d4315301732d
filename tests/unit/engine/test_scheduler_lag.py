"""The scheduler while the host does not know the last tokens yet."""

from __future__ import annotations

import pytest
from scheduled_world import alone, crowd, request_of

from gptoss_dist.engine.request import Event, Finish, Request, Sampling


def test_a_stop_token_is_found_a_step_late_and_the_token_after_it_is_dropped():
    prompt = (1, 2, 3, 4, 5, 6)
    first, second, *_ = alone(Request("x", prompt, Sampling(9)))[0]
    assert first != second
    world = crowd()
    world.add(Request("stop", prompt, Sampling(9, stop_tokens=(second,))), request_of("other", 3, 5, first=100))
    world.step()
    assert (world.output["stop"], world.full.held) == ([], 3)
    world.step()
    assert world.output["stop"] == [first]
    world.step()
    assert world.plans[-1][0] == ("stop", 7, 1, True), "launched before the stop token was known"
    assert (world.output["stop"], world.finish) == ([first, second], {"stop": Finish.stop})
    assert [one.id for one in world.scheduler.running] == ["other"]
    world.run()
    world.verify_outputs()


def test_the_last_token_allowed_is_known_in_advance_and_costs_no_step():
    world = crowd()
    world.add(request_of("a", 5, 2))
    steps = 0
    while world.scheduler.has_work:
        world.step()
        steps += 1
    assert [plan for plan in world.plans if plan] == [[("a", 0, 5, True)], [("a", 5, 1, True)]]
    assert steps == 3, "two that compute, and one that reads the last token"
    world.verify_outputs()


def test_a_page_is_found_once_its_last_token_is_known():
    world = crowd()
    world.add(request_of("a", 7, 6))
    world.step()
    world.step()
    [one] = world.scheduler.running
    assert (one.computed, one.known, one.pending, one.registered) == (8, 8, 1, 2)
    assert world.full.lookup(one.page_key(1, 4)) == one.full_table[1]
    chunks = world.scheduler.schedule()
    world.scheduler.launched(chunks)
    assert (one.computed, one.known, one.pending) == (9, 8, 2)
    with pytest.raises(IndexError, match="page 2 of a is not full: there are 8 tokens"):
        one.page_key(2, 4)


def test_a_cancelled_request_gets_no_more_events_although_its_token_is_under_way():
    world = crowd()
    world.add(request_of("a", 5, 9), request_of("b", 5, 9, first=100))
    world.step()
    world.cancel("a")
    world.add(Request("a", (7, 8), Sampling(3)))  # the id again, at once
    del world.finish["a"]
    world.step()
    assert (world.output["a"], len(world.output["b"])) == ([], 1)
    world.run()
    world.verify_outputs()


def test_a_request_whose_constraint_allows_nothing_ends_alone():
    world = crowd()
    world.add(request_of("a", 5, 9), request_of("b", 5, 9, first=100))
    world.scheduler.launched(world.scheduler.schedule())
    events = world.scheduler.resolve([None, 3])
    assert events == [Event("a", (), Finish.blocked), Event("b", (3,))]
    assert [one.id for one in world.scheduler.running] == ["b"]
    world.scheduler.check()


def test_a_sequence_that_gave_way_begins_again_with_the_token_that_was_under_way():
    world = crowd(full_pages=6)
    world.add(request_of("a", 8, 9), request_of("b", 8, 9, first=100), request_of("c", 4, 4, first=200))
    while not world.scheduler.preemptions:
        before = len(world.output["b"])
        world.step()
    waiting = world.scheduler.waiting[0]
    assert (waiting.id, waiting.pending, waiting.fed, waiting.slot) == ("b", 0, False, -1)
    assert len(world.output["b"]) == before + 1, "read after it gave way"
    world.run()
    world.verify_outputs()
