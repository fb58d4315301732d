from __future__ import annotations

from gptoss_dist.engine.request import Request, Sampling
from gptoss_dist.engine.sequence import Sequence
from gptoss_dist.engine.step_plan import StepPlan


def sequence_of(tokens: int, computed: int = 0) -> Sequence:
    sequence = Sequence(Request("a", tuple(range(tokens)), Sampling(4)), 0)
    sequence.computed = computed
    return sequence


def test_chunks_follow_what_is_in_the_cache_and_take_of_the_tokens():
    plan, one, other = StepPlan(10, 10), sequence_of(7, computed=4), sequence_of(20, computed=8)
    first, second = plan.add(one, 3), plan.add(other, 7)
    assert plan.chunks == [first, second]
    assert [(chunk.start, chunk.end, chunk.samples) for chunk in plan.chunks] == [(4, 7, True), (8, 15, False)]
    assert plan.left == 0
    assert [plan.end_of(sequence) for sequence in (one, other, sequence_of(5, computed=2))] == [7, 15, 2]


def test_prompts_are_held_back_beside_a_decode_and_by_nothing_else():
    plan = StepPlan(10, 4)
    plan.hold_back()
    plan.add(sequence_of(20), 1)  # a chunk that happens to be one token
    plan.hold_back()
    assert plan.left == 9
    plan.add(sequence_of(6, computed=5), 1)
    plan.hold_back()
    assert plan.left == 2
    plan = StepPlan(3, 8)
    plan.add(sequence_of(6, computed=5), 1)
    plan.hold_back()
    assert plan.left == 2, "never more than before"
