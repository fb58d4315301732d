"""What the scheduler refuses, reuses, ends and checks."""

from __future__ import annotations

import pytest
from scheduled_world import alone, crowd, request_of

from gptoss_dist.engine.pages import PageAccountError
from gptoss_dist.engine.request import Finish, Request, Sampling
from gptoss_dist.errors import ConfigError, DoesNotFitError


def test_a_second_request_computes_only_what_is_new():
    world = crowd(window=6)
    world.add(request_of("a", 22))
    world.run()
    world.add(request_of("b", 22), request_of("c", 20), request_of("d", 5))
    world.step()
    assert world.plans[-1] == [("b", 20, 2, True), ("c", 16, 4, True), ("d", 4, 1, True)]
    assert [one.reused for one in world.scheduler.running] == [20, 16, 4]
    world.run()
    world.verify_outputs()


def test_two_equal_prompts_of_one_step_keep_one_set_of_pages():
    world = crowd(lag=0)
    world.add(request_of("a", 9, 1), request_of("b", 9, 1))
    world.step()
    assert world.plans == [[("a", 0, 9, True), ("b", 0, 9, True)]]
    assert (world.full.cached, world.sliding.cached) == (2, 2)
    world.verify_outputs()


def test_stop_tokens_and_max_tokens_end_a_request_and_release_its_pages():
    prompt = (1, 2, 3, 4, 5)
    first, second, *_ = alone(Request("x", prompt, Sampling(9)))[0]
    world = crowd(lag=0)
    world.add(Request("stop", prompt, Sampling(9, stop_tokens=(second,))), Request("length", prompt, Sampling(1)))
    assert first != second
    world.step()
    assert world.finish == {"length": Finish.length}
    world.step()
    assert world.finish == {"length": Finish.length, "stop": Finish.stop}
    assert world.output == {"stop": [first, second], "length": [first]}
    assert not world.scheduler.has_work
    assert world.full.held == world.sliding.held == 0


def test_cancelling_what_is_not_there_does_nothing():
    world = crowd()
    assert world.scheduler.cancel("a") is None
    world.add(request_of("a", 3, 1))
    world.run()
    assert world.scheduler.cancel("a") is None
    world.add(request_of("a", 3, 1))
    assert world.scheduler.has_work, "an id may be used again"


def test_a_request_that_can_never_fit_is_refused():
    scheduler = crowd(full_pages=10, sliding_pages=3).scheduler
    with pytest.raises(DoesNotFitError, match=r"31 prompt tokens and up to 10 new ones need 11 pages .* has 10 and 3"):
        scheduler.add(request_of("a", 31, 10))
    assert not scheduler.has_work


@pytest.mark.parametrize(("prompt", "max_tokens"), [(39, 1), (1, 39), (20, 20)])
def test_a_request_that_just_fits_is_served(prompt: int, max_tokens: int):
    world = crowd(full_pages=10, sliding_pages=3)
    world.add(request_of("a", prompt, max_tokens))
    world.run()
    world.verify_outputs()


def test_wrong_use_is_refused():
    world = crowd()
    world.add(request_of("a", 3))
    with pytest.raises(ConfigError, match="request a: a request of this id is under way"):
        world.add(request_of("a", 5))
    with pytest.raises(ConfigError, match="9 sequences at once and 8 tokens a step"):
        crowd(max_running=9, step_tokens=8)
    with pytest.raises(ConfigError, match="9 sequences at once and 8 tokens a step"):
        crowd(max_running=9, mixed_step_tokens=8)
    chunks = world.scheduler.schedule()
    with pytest.raises(AssertionError, match="the step before was not launched"):
        world.scheduler.schedule()
    with pytest.raises(AssertionError, match="cancelled between steps"):
        world.scheduler.cancel("a")
    with pytest.raises(AssertionError, match="not those that were planned"):
        world.scheduler.launched([])
    with pytest.raises(AssertionError, match="resolved between plans"):
        world.scheduler.resolve([1])
    world.scheduler.launched(chunks)
    with pytest.raises(AssertionError, match="0 tokens for 1 sequences"):
        world.scheduler.resolve([])
    with pytest.raises(AssertionError, match="somebody waits"):
        world.scheduler.abandon()
    world.scheduler.launched(world.scheduler.schedule())
    with pytest.raises(AssertionError, match="two steps before were not resolved"):
        world.scheduler.schedule()


def test_check_finds_what_is_not_in_order():
    for change, message in {
        "one.full_table.pop()": "sequence a: 12 tokens computed",
        "world.scheduler._running.clear()": "counts 1 owners and has 0",
        "world.scheduler._waiting.clear()": "out of order, or are lost",
        "world.scheduler._waiting.rotate(1)": "out of order, or are lost",
        "world.scheduler.waiting[0].computed = 1": "sequence b waits and holds pages",
        "one.tokens += [1]; world.scheduler._running.append(one)": "counts 1 owners and has 2",
        "one.running = False": "out of order, or are lost",
        "one.slot = 1": "slots are lost or shared",
        "world.scheduler.waiting[0].slot = 0": "slots are lost or shared",
    }.items():
        world = crowd(max_running=1)
        world.add(request_of("a", 12), request_of("b", 2), request_of("c", 2))
        world.step()
        world.scheduler.check()
        exec(change, {"world": world, "one": world.scheduler.running[0]})
        with pytest.raises(PageAccountError, match=message):
            world.scheduler.check()
