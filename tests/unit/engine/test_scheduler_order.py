"""Who is in a step, who begins, and who gives way."""

from __future__ import annotations

from itertools import pairwise

import pytest
from scheduled_world import crowd, request_of

from gptoss_dist.engine.page_tables import PageTables, Prefix
from gptoss_dist.engine.request import Finish
from gptoss_dist.engine.sequence import Sequence


def test_decodes_come_first_and_then_prompts_in_the_order_of_arrival():
    world = crowd(step_tokens=16)
    world.add(request_of("a", 6), request_of("b", 25, first=100), request_of("c", 9, first=200))
    for _ in range(4):
        world.step()
    assert world.plans == [
        [("a", 0, 6, True), ("b", 0, 10, False)],
        [("a", 6, 1, True), ("b", 10, 15, True)],
        [("a", 7, 1, True), ("b", 25, 1, True), ("c", 0, 9, True)],
        [("a", 8, 1, True), ("b", 26, 1, True), ("c", 9, 1, True)],
    ]
    world.run()
    world.verify_outputs()


def test_prompts_beside_decodes_get_what_mixed_steps_leave():
    world = crowd(step_tokens=16, mixed_step_tokens=9)
    world.add(request_of("a", 16), request_of("b", 40, first=100), request_of("c", 3, first=200))
    for _ in range(7):
        world.step()
    assert world.plans == [
        [("a", 0, 16, True)],
        [("a", 16, 1, True), ("b", 0, 8, False)],
        [("a", 17, 1, True), ("b", 8, 8, False)],
        [("a", 18, 1, True), ("b", 16, 8, False)],
        [("b", 24, 16, True)],
        [("b", 40, 1, True), ("c", 0, 3, True)],
        [("b", 41, 1, True), ("c", 3, 1, True)],
    ]
    world.run()
    world.verify_outputs()


def test_a_request_takes_all_that_a_step_has_left_before_the_next_begins():
    world = crowd(step_tokens=10)
    world.add(request_of("long", 27), request_of("short", 2, first=100))
    world.step()
    assert world.plans[-1] == [("long", 0, 10, False)]
    world.step()
    world.step()
    assert world.plans[-1] == [("long", 20, 7, True), ("short", 0, 2, True)]


def test_no_request_overtakes_a_larger_one():
    world = crowd(full_pages=12)
    world.add(request_of("a", 20, 20), request_of("large", 28, first=100), request_of("small", 1, first=200))
    world.step()
    assert [chunk[0] for chunk in world.plans[-1]] == ["a", "large"]
    assert world.plans[-1][1] == ("large", 0, 12, False), "20 tokens of the step are gone"
    world = crowd(full_pages=12, step_tokens=64)
    world.add(request_of("a", 20, 20), request_of("large", 28, first=100), request_of("small", 1, first=200))
    for _ in range(20):
        assert [chunk.sequence.id for chunk in world.step()] == ["a"]
    world.run()
    assert world.scheduler.preemptions == 0
    world.verify_outputs()


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whose prefixes were looked for, one after the other."""
    names: list[str] = []
    find = PageTables.find

    def counted(tables: PageTables, sequence: Sequence) -> Prefix:
        names.append(sequence.id)
        return find(tables, sequence)

    monkeypatch.setattr(PageTables, "find", counted)
    return names


def test_a_refused_request_is_looked_at_again_when_pages_come_back(found: list[str]):
    world = crowd(full_pages=12, step_tokens=64)
    world.add(request_of("a", 16, 10), request_of("b", 4, 5, first=100), request_of("large", 28, first=200))
    while "b" not in world.finish:
        assert found == (["a", "b", "large"] if world.plans else [])
        world.step()
    while "a" not in world.finish:
        world.step()
    assert found == ["a", "b", "large", "large"]
    world.run()
    assert found == ["a", "b", "large", "large", "large"]
    world.verify_outputs()


def test_so_is_one_for_which_sliding_pages_were_too_few(found: list[str]):
    world = crowd(sliding_pages=5)
    world.add(request_of("a", 19, 1))
    world.run()
    world.add(request_of("hog", 9, 8, first=100))
    world.step()
    world.add(request_of("again", 19, 1))
    waited = 0
    while "again" not in world.finish:
        world.step()
        waited += [chunk[0] for chunk in world.plans[-1]] == ["hog"] and found[-1] == "again"
    assert waited > 1, "the pages that it would go on from are all that the other one leaves"
    assert found == ["a", "hog", "again", "again"]
    world.run()
    world.verify_outputs()


def test_at_most_so_many_run_at_once():
    world = crowd(max_running=3)
    world.add(*(request_of(str(index), 2, 5, first=10 * index) for index in range(5)))
    world.step()
    assert [one.id for one in world.scheduler.running] == ["0", "1", "2"]
    assert [one.id for one in world.scheduler.waiting] == ["3", "4"]
    world.run()
    world.verify_outputs()


def test_a_newcomer_leaves_a_page_for_each_that_runs():
    world = crowd(full_pages=6)
    world.add(request_of("a", 8, 8), request_of("b", 8, 8, first=100), request_of("c", 4, 4, first=200))
    world.step()
    assert [one.id for one in world.scheduler.running] == ["a", "b"]
    world.step()
    assert world.full.available == 0
    assert world.scheduler.preemptions == 0


def test_the_youngest_gives_way_and_is_the_first_to_begin_again():
    world = crowd(full_pages=6)
    world.add(request_of("a", 8, 9), request_of("b", 8, 9, first=100), request_of("c", 4, 4, first=200))
    while not world.scheduler.preemptions:
        world.step()
    assert [one.id for one in world.scheduler.running] == ["a"]
    assert [(one.id, one.preemptions, one.computed) for one in world.scheduler.waiting] == [("b", 1, 0), ("c", 0, 0)]
    given_way = world.scheduler.waiting[0]
    assert given_way.generated == world.output["b"] != []
    world.run()
    parts = [(start, start + count) for plan in world.plans for name, start, count, _ in plan if name == "b"]
    again = [start for (_, before), (start, _) in pairwise(parts) if start < before]
    assert again == [8], "what was not evicted is not computed again"
    world.verify_outputs()


def test_the_youngest_waits_with_its_pages_while_the_others_need_none():
    world = crowd(full_pages=5, lag=0)
    world.add(request_of("a", 5, 3), request_of("b", 7, 4, first=100))
    world.step()
    assert [one.id for one in world.scheduler.running] == ["a", "b"]
    world.full.allocate(1)  # somebody else's
    chunks = world.scheduler.schedule()
    assert [chunk.sequence.id for chunk in chunks] == ["a", "b"]
    world.scheduler.launched(chunks)
    world.scheduler.resolve([1, 1])
    chunks = world.scheduler.schedule()
    assert [chunk.sequence.id for chunk in chunks] == ["a"], "b would begin its third page"
    assert len(world.scheduler.running[1].full_table) == 2
    world.scheduler.launched(chunks)
    [event] = world.scheduler.resolve([1])
    assert event.finish is Finish.length
    assert [chunk.sequence.id for chunk in world.scheduler.schedule()] == ["b"]
    assert world.scheduler.preemptions == 0


def test_prompts_that_block_each_other_do_not_stand_still():
    world = crowd(full_pages=10, sliding_pages=10, step_tokens=12)
    world.add(*(request_of(str(index), 30, 8, first=40 * index) for index in range(4)))
    world.run(steps=200)
    world.verify_outputs()


def test_a_long_prompt_is_served_although_short_ones_keep_coming():
    world = crowd(full_pages=30, step_tokens=8, max_running=4)
    world.add(*(request_of(f"before {index}", 3, 6, first=10 * index) for index in range(6)))
    world.add(request_of("long", 100, 3, first=1000))
    steps = 0
    while "long" not in world.finish:
        steps += 1
        world.add(request_of(f"after {steps}", 3, 6, first=2000 + 10 * steps))
        world.step()
        assert steps < 120
    first = next(index for index, plan in enumerate(world.plans) if any(chunk[0].startswith("after") for chunk in plan))
    last_chunk = next(index for index, plan in enumerate(world.plans) if any(c[0] == "long" and c[3] for c in plan))
    assert first >= last_chunk, "nobody who came later began before the long prompt was through"
    assert all(world.finish.get(f"before {index}") for index in range(6))
