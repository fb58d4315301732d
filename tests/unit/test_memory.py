from __future__ import annotations

import dataclasses
import math

import pytest

from gptoss_dist.config import compose_run
from gptoss_dist.memory import DTYPE_BYTES, predict, weight_bytes
from gptoss_dist.plan.degrees import Degrees
from gptoss_dist.plan.layout import pieces
from gptoss_dist.plan.rules import rules_of
from gptoss_dist.schema.plan import AttentionPart, ExpertPart, PlanConf, VocabularyPart
from gptoss_dist.shapes import SIZES

LARGE, SMALL = SIZES["120b"], SIZES["20b"]
SINGLE = PlanConf(name="single", tp=1)
TP = PlanConf(name="tp", attention=AttentionPart.tp, vocabulary=VocabularyPart.tp, experts=ExpertPart.tp)
EP = PlanConf(name="ep", vocabulary=VocabularyPart.head, experts=ExpertPart.ep)
TP_EP = PlanConf(name="tp_ep", attention=AttentionPart.tp, vocabulary=VocabularyPart.tp, experts=ExpertPart.ep)


def held(shape=LARGE, plan=SINGLE, dp=1, tp=1, packed=True, dtype="bfloat16"):
    degrees = Degrees(dp, tp)
    rules = rules_of(plan, packed)
    return [predict(shape, rules, degrees, packed, dtype, rank) for rank in range(degrees.world_size)]


def norms(shape) -> int:
    """Values in the layers' two norms and the last one."""
    return (2 * shape.layers + 1) * shape.hidden


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("packed", [True, False])
def test_one_rank_holds_the_checkpoint(size, packed):
    (only,) = held(SIZES[size], packed=packed)
    assert only.weights == SIZES[size].checkpoint_bytes(dense=not packed)


def test_float16_keeps_norms_in_float32():
    (only,) = held(dtype="float16")
    assert only.weights == LARGE.checkpoint_bytes() + 2 * norms(LARGE)


def test_float32_doubles_what_is_not_packed():
    (only,) = held(dtype="float32")
    packed = sum(spec.nbytes for spec in LARGE.tensors() if spec.dtype == "uint8")
    assert only.weights == packed + 2 * (LARGE.checkpoint_bytes() - packed)


def test_gigabytes_of_the_published_models():
    assert held(LARGE)[0].weights / 1e9 == pytest.approx(65.2, abs=0.1)
    assert held(SMALL)[0].weights / 1e9 == pytest.approx(13.8, abs=0.1)


@pytest.mark.parametrize("plan", [TP, EP, TP_EP], ids=lambda plan: plan.name)
@pytest.mark.parametrize("tp", [2, 4, 8])
@pytest.mark.parametrize("packed", [True, False])
def test_all_ranks_together_hold_the_model_and_copies_of_what_is_whole(plan, tp, packed):
    rules = rules_of(plan, packed)
    whole = sum(
        DTYPE_BYTES["bfloat16"] * piece.elements
        for piece in pieces(LARGE, packed, rules, tp, 0)
        if piece.local == piece.whole and piece.dtype != "uint8"
    )
    total = sum(rank.weights for rank in held(plan=plan, tp=tp, packed=packed))
    assert total == LARGE.checkpoint_bytes(dense=not packed) + (tp - 1) * whole


def test_a_rank_of_four_by_hand():
    """plan=tp, rank 0: bytes of every kind of weight, written out."""
    expert = 23 * 64 * 90 * 16 + 23 * 64 * 90 + 2 * 23 * 64 + 2880 * 23 * 16 + 2880 * 23 + 2 * 2880
    attention = 2 * (2880 * (1024 + 128 + 128) + 1024 + 128 + 128 + 1024 * 2880 + 2880 + 16)
    layer = 128 * expert + attention + 2 * (128 * 2880 + 128) + 2 * 2 * 2880
    whole = 36 * layer + 2 * 2 * (201088 // 4) * 2880 + 2 * 2880
    assert held(plan=TP, tp=4)[0].weights == whole


def test_the_last_rank_of_uneven_slices_holds_less():
    ranks = [one.weights for one in held(plan=TP, tp=4)]
    assert ranks[0] == ranks[1] == ranks[2] > ranks[3]
    group = 128 * 36 * (64 * 90 * 17 + 2 * 64 + 2880 * 17)
    assert ranks[0] - ranks[3] == 2 * group


def test_replicas_repeat_each_other():
    replicas = [one.weights for one in held(plan=TP, dp=2, tp=4)]
    assert replicas[:4] == replicas[4:] == [one.weights for one in held(plan=TP, tp=4)]


def test_cache_of_a_token_by_hand():
    (only,) = held()
    assert only.cache_per_token == 18 * 2 * 8 * 64 * 2 == 36_864
    assert only.cache_window == 18 * 128 * 2 * 8 * 64 * 2
    assert only.cache(131_072) == 131_072 * 36_864 + 4_718_592
    assert only.cache(0) == only.cache_window
    assert only.kept_per_token == 18 * 2 * 8 * 64 * 2 // 16
    assert only.paged_per_token == 36_864 + 2_304
    for tokens in (0, 1, 131_072):
        assert only.tokens(only.cache(tokens)) == only.tokens(only.cache(tokens + 1) - 1) == tokens
    assert only.tokens(only.cache_window - 1) == 0
    (small,) = held(SMALL)
    assert small.cache_per_token == 12 * 2 * 8 * 64 * 2


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_the_cache_is_in_the_dtype_of_the_activations(dtype):
    assert held(dtype=dtype)[0].cache_per_token == 18 * 2 * 8 * 64 * DTYPE_BYTES[dtype]


def test_the_cache_is_shared_where_heads_are_dealt_out_only():
    for plan in (TP, TP_EP):
        assert {one.cache_per_token for one in held(plan=plan, tp=4)} == {36_864 // 4}
        assert {one.cache_window for one in held(plan=plan, tp=8)} == {18 * 128 * 2 * 64 * 2}
    assert {one.cache_per_token for one in held(plan=EP, tp=4)} == {36_864}


def test_heads_dealt_out_by_rules_of_ones_own_count_too():
    custom = compose_run(["job=plan", "plan=custom"]).plan
    assert {one.cache_per_token for one in held(plan=custom, tp=4)} == {36_864 // 4}
    gathered = PlanConf(name="x", rules={"model.layers.*.self_attn.k_proj": "colwise_gather_output"})
    assert {one.cache_per_token for one in held(plan=gathered, tp=4)} == {36_864}


def test_an_odd_number_of_layers_has_one_sliding_layer_more():
    (only,) = held(dataclasses.replace(LARGE, layers=5))
    assert only.cache_per_token == 2 * 2 * 8 * 64 * 2
    assert only.cache_window == 3 * 128 * 2 * 8 * 64 * 2


def test_weight_bytes_of_no_parts():
    assert weight_bytes([], "bfloat16") == 0


def test_weight_bytes_count_every_piece_once():
    parts = list(pieces(SIZES["tiny"], True, {}, 1, 0))
    assert weight_bytes(parts, "bfloat16") == sum(
        math.prod(part.whole) * (1 if part.dtype == "uint8" else 2) for part in parts
    )
