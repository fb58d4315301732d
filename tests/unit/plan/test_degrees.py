from __future__ import annotations

import dataclasses

import pytest
from shipped import PLANS

from gptoss_dist.errors import ConfigError, WorldSizeError
from gptoss_dist.plan.degrees import (
    Degrees,
    check_plan,
    choose_plan,
    problem_of_heads,
    problem_of_slices,
    resolve_degrees,
)
from gptoss_dist.plan.rules import rules_of
from gptoss_dist.plan.shard import chunk
from gptoss_dist.schema.plan import AttentionPart, ExpertPart, PlanConf, VocabularyPart
from gptoss_dist.shapes import SIZES, Shape

SHARDED = [name for name in PLANS if name not in ("single", "device_map", "auto")]


def plan_of(name: str, **changes: object) -> PlanConf:
    return dataclasses.replace(PLANS[name], **changes)


def refusal(plan: PlanConf, shape: Shape, tp: int, packed: bool = True) -> str:
    with pytest.raises(ConfigError) as caught:
        check_plan(plan, shape, Degrees(1, tp), packed)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ── degrees ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ranks_of_a_replica_are_neighbours():
    degrees = Degrees(dp=3, tp=4)
    assert degrees.world_size == 12
    assert [degrees.dp_rank(rank) for rank in range(12)] == [0] * 4 + [1] * 4 + [2] * 4
    assert [degrees.tp_rank(rank) for rank in range(12)] == [0, 1, 2, 3] * 3
    assert [degrees.dp_rank(rank) * 4 + degrees.tp_rank(rank) for rank in range(12)] == list(range(12))


@pytest.mark.parametrize("dp", [1, 2, 3])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_fixed_degrees_are_taken_or_refused_with_both_numbers(dp, tp):
    plan = PlanConf(name="mine", dp=dp, tp=tp)
    assert resolve_degrees(plan, None, devices=99) == Degrees(dp, tp)
    assert resolve_degrees(plan, dp * tp, devices=1) == Degrees(dp, tp)
    for started in {1, 2, 5, 7, 8, 16} - {dp * tp}:
        with pytest.raises(WorldSizeError) as caught:
            resolve_degrees(plan, started, devices=1)
        message = str(caught.value)
        assert f"plan=mine needs {dp * tp} ranks" in message
        assert f"plan.dp={dp} × plan.tp={tp}" in message
        assert f"{started} {'was' if started == 1 else 'were'} started" in message
        assert f"multiply to {started}" in message


@pytest.mark.parametrize("fixed", [1, 2, 3, 4])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 8, 12])
@pytest.mark.parametrize("launched", [True, False])
def test_an_open_degree_takes_what_is_left(fixed, ranks, launched):
    """`ranks` were started, or are the devices of this machine."""
    for name, plan in (("dp", PlanConf(name="x", dp=fixed, tp=None)), ("tp", PlanConf(name="x", dp=None, tp=fixed))):
        world_size, devices = (ranks, 1) if launched else (None, ranks)
        if ranks % fixed:
            with pytest.raises(WorldSizeError, match=rf"plan\.{name}={fixed}, .* {ranks}, no multiple of it"):
                resolve_degrees(plan, world_size, devices)
        else:
            degrees = resolve_degrees(plan, world_size, devices)
            assert degrees.world_size == ranks
            assert getattr(degrees, name) == fixed


# ── plan=auto ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("ranks", "dp", "tp"),
    [(1, 1, 1), (2, 1, 2), (3, 3, 1), (4, 1, 4), (5, 5, 1), (6, 3, 2), (8, 1, 8), (12, 3, 4), (16, 2, 8), (72, 9, 8)],
)
@pytest.mark.parametrize("size", SIZES)
def test_auto_shares_one_model_as_widely_as_the_heads_allow(size, ranks, dp, tp):
    plan, reason = choose_plan(SIZES[size], ranks)
    assert (plan.dp, plan.tp) == (dp, tp)
    assert plan.auto is False
    assert str(ranks) in reason or ranks == 1
    assert resolve_degrees(plan, ranks, 1) == Degrees(dp, tp)


ODD_SHAPES = {
    "six key-value heads": dataclasses.replace(SIZES["tiny"], heads=12, kv_heads=6),
    "a vocabulary of primes": dataclasses.replace(SIZES["tiny"], vocab=20011),
    "three groups": dataclasses.replace(SIZES["tiny"], intermediate=96),
    "one key-value head": dataclasses.replace(SIZES["tiny"], heads=4, kv_heads=1),
}


@pytest.mark.parametrize("name", ODD_SHAPES)
@pytest.mark.parametrize("packed", [True, False])
def test_what_auto_chooses_is_always_possible(name, packed):
    shape = ODD_SHAPES[name]
    for ranks in range(1, 17):
        plan, _ = choose_plan(shape, ranks)
        degrees = resolve_degrees(plan, ranks, 1)
        check_plan(plan, shape, degrees, packed)


# ── what cannot be ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SHARDED)
def test_every_plan_is_possible_on_the_usual_numbers_of_ranks(size, name):
    for packed in (True, False):
        for tp in (1, 2, 4, 8):
            check_plan(plan_of(name), SIZES[size], Degrees(1, tp), packed)


@pytest.mark.parametrize("size", SIZES)
def test_key_value_heads_are_not_split(size):
    shape = SIZES[size]
    for name in ("tp", "tp_ep", "dp_tp", "custom"):
        message = refusal(plan_of(name), shape, 16)
        assert "8 key-value heads do not divide over 16 ranks" in message
        assert "plan.tp can be 1, 2, 4, 8" in message


def test_query_heads_are_not_split_either():
    assert "64 query heads do not divide over 3 ranks" in refusal(plan_of("tp"), SIZES["120b"], 3)
    assert "16 query heads do not divide over 5 ranks" in refusal(plan_of("tp"), SIZES["tiny"], 5)


def test_whole_attention_asks_nothing_of_heads():
    plan = plan_of("ep", vocabulary=VocabularyPart.whole)
    for tp in (16, 32, 64, 128):
        check_plan(plan, SIZES["120b"], Degrees(1, tp), packed=True)


@pytest.mark.parametrize(
    ("size", "tp"), [("120b", 3), ("120b", 256), ("20b", 64), ("20b", 5), ("tiny", 3), ("tiny", 16)]
)
def test_experts_are_dealt_out_whole(size, tp):
    plan = PlanConf(name="ep", tp=tp, experts=ExpertPart.ep)
    message = refusal(plan, SIZES[size], tp)
    assert f"{SIZES[size].experts} experts do not divide over {tp} ranks" in message


def test_the_vocabulary_is_cut_evenly():
    for part in (VocabularyPart.tp, VocabularyPart.head):
        plan = PlanConf(name="mine", vocabulary=part)
        check_plan(plan, SIZES["120b"], Degrees(1, 64), packed=True)  # 201088 = 2^7 · 1571
        message = refusal(plan, SIZES["120b"], 3)
        assert "a vocabulary of 201088 does not divide over 3 ranks" in message
        assert "plan.vocabulary=whole" in message
    check_plan(PlanConf(name="mine"), SIZES["120b"], Degrees(1, 3), packed=True)


def test_ninety_groups_over_four_and_eight_ranks():
    groups = SIZES["120b"].intermediate // 32
    assert groups == 90
    assert [chunk(groups, 4, rank)[1] for rank in range(4)] == [23, 23, 23, 21]
    assert [chunk(groups, 8, rank)[1] for rank in range(8)] == [12] * 7 + [6]
    assert problem_of_slices(SIZES["120b"], 4, packed=True) is None
    assert problem_of_slices(SIZES["120b"], 8, packed=True) is None


@pytest.mark.parametrize("size", SIZES)
def test_sliced_experts_leave_no_rank_without_a_group(size):
    shape = SIZES[size]
    plan = PlanConf(name="mine", experts=ExpertPart.tp)
    for tp in range(1, 2 * shape.intermediate // 32):
        empty = any(chunk(shape.intermediate // 32, tp, rank)[1] == 0 for rank in range(tp))
        if empty:
            assert f"{shape.intermediate // 32} groups of 32" in refusal(plan, shape, tp)
        else:
            check_plan(plan, shape, Degrees(1, tp), packed=True)


def test_dense_experts_are_cut_evenly():
    plan = PlanConf(name="mine", experts=ExpertPart.tp)
    check_plan(plan, SIZES["120b"], Degrees(1, 9), packed=False)
    message = refusal(plan, SIZES["120b"], 7, packed=False)
    assert "2880" in message
    assert "7 ranks" in message
    assert "plan.experts=ep" in message
    check_plan(plan, SIZES["120b"], Degrees(1, 7), packed=True)  # 90 groups: 13 × 6 + 12


def test_rules_of_ones_own_are_checked_like_the_parts_of_a_plan():
    attention = "model.layers.*.self_attn"
    heads = PlanConf(name="mine", rules={f"{attention}.k_proj": "colwise"})
    assert "key-value heads" in refusal(heads, SIZES["120b"], 16)
    gathered = PlanConf(name="mine", rules={f"{attention}.k_proj": "colwise_gather_output"})
    check_plan(gathered, SIZES["120b"], Degrees(1, 16), packed=True)
    slices = PlanConf(name="mine", rules={"model.layers.*.mlp.experts": "gptoss_expert_slices"})
    assert "90 groups" in refusal(slices, SIZES["120b"], 16)
    dealt = PlanConf(name="mine", rules={"model.layers.*.mlp.experts.down_proj_blocks": "grouped_gemm"})
    assert "128 experts" in refusal(dealt, SIZES["120b"], 3)


def test_replicas_do_not_count():
    plan = plan_of("tp")
    check_plan(plan, SIZES["120b"], Degrees(dp=3, tp=8), packed=True)


def test_problem_of_heads_is_the_divisibility_of_both_kinds():
    for heads, kv_heads in ((64, 8), (16, 8), (12, 6), (4, 1)):
        shape = dataclasses.replace(SIZES["tiny"], heads=heads, kv_heads=kv_heads)
        for tp in range(1, 20):
            possible = heads % tp == 0 and kv_heads % tp == 0
            assert (problem_of_heads(shape, tp) is None) == possible


def test_the_shipped_plans_say_what_their_names_say():
    tp, ep, tp_ep = (rules_of(plan_of(name), packed=True) for name in ("tp", "ep", "tp_ep"))
    assert plan_of("tp").attention is AttentionPart.tp
    assert not any("self_attn" in name or "embed" in name for name in ep)
    assert ep["lm_head"] == "colwise_gather_output"
    assert {name for name in tp if "self_attn" in name} == {name for name in tp_ep if "self_attn" in name}
    assert {name for name in ep if "experts" in name} == {name for name in tp_ep if "experts" in name}
    assert rules_of(plan_of("single"), packed=True) == {}
    assert rules_of(plan_of("device_map"), packed=True) == {}
