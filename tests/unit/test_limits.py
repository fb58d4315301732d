"""Against the table worked out by hand from the same ceilings, and against counts made another way."""

from __future__ import annotations

import dataclasses
import random

import pytest

from gptoss_dist.ceilings import Ceiling, ceiling_of
from gptoss_dist.limits import (
    Placement,
    all_reduces,
    busiest_rank,
    decode_limit,
    experts_hit,
    prefill_limit,
    step_bytes,
    token_flops,
)
from gptoss_dist.plan.degrees import Degrees
from gptoss_dist.plan.rules import rules_of
from gptoss_dist.schema.plan import AttentionPart, ExpertPart, PlanConf, VocabularyPart
from gptoss_dist.shapes import SIZES

H200 = ceiling_of("NVIDIA H200")
TP = PlanConf(name="tp", attention=AttentionPart.tp, vocabulary=VocabularyPart.tp, experts=ExpertPart.tp)
EP = PlanConf(name="ep", vocabulary=VocabularyPart.head, experts=ExpertPart.ep)
SINGLE = PlanConf(name="single")
LARGE = SIZES["120b"]


def placed(tp: int = 1, dp: int = 1, plan: PlanConf | None = None, packed: bool = True) -> Placement:
    plan = plan or (TP if tp > 1 else SINGLE)
    return Placement(LARGE, packed, "bfloat16", rules_of(plan, packed), Degrees(dp, tp))


def test_bytes_of_one_stream():
    found = step_bytes(placed(), 1, 1024)
    assert found.attention == pytest.approx(1.911e9, rel=0.001)
    assert found.experts == pytest.approx(1.904e9, rel=0.002)
    assert found.vocabulary == pytest.approx(1.158e9, rel=0.001)
    assert found.rest == pytest.approx(0.03e9, rel=0.15)
    assert found.cache == 18 * 2048 * 1024 + 18 * 2048 * 128
    assert found.total == pytest.approx(5.04e9, rel=0.005)


def test_bytes_of_64_streams():
    assert step_bytes(placed(), 64, 1024).experts == pytest.approx(52.8e9, rel=0.005)
    assert experts_hit(LARGE, 64) == pytest.approx(0.87, abs=0.005)


def test_experts_hit_by_drawing_them():
    generator, hit = random.Random(5), []
    for _ in range(400):
        hit.append(len({one for _ in range(20) for one in generator.sample(range(128), 4)}) / 128)
    assert experts_hit(LARGE, 20) == pytest.approx(sum(hit) / len(hit), rel=0.02)
    assert experts_hit(LARGE, 1) == pytest.approx(4 / 128)


@pytest.mark.parametrize(("tokens", "ranks"), [(1, 2), (1, 4), (1, 8), (2, 4), (8, 8), (64, 4)])
def test_the_busiest_rank_by_drawing_experts(tokens: int, ranks: int):
    generator, busiest, average = random.Random(tokens * ranks), 0, 0.0
    for _ in range(800):
        hit = {one for _ in range(tokens) for one in generator.sample(range(128), 4)}
        counts = [sum(one * ranks // 128 == rank for one in hit) for rank in range(ranks)]
        busiest, average = busiest + max(counts), average + sum(counts) / ranks
    drawn = busiest / average
    assert 0.85 * drawn < busiest_rank(LARGE, tokens, ranks) < 1.03 * drawn  # a normal number is never far in its tail


def test_all_experts_hit_make_no_rank_busier():
    assert busiest_rank(LARGE, 4000, 8) == pytest.approx(1)
    assert busiest_rank(LARGE, 1, 1) == pytest.approx(1)


@pytest.mark.parametrize(
    ("ranks", "streams", "context", "wanted"),
    [
        (1, 1, 1024, 909),
        (2, 1, 1024, 1000),
        (4, 1, 1024, 1280),
        (1, 64, 1024, 5000),
        (2, 64, 1024, 9300),
        (4, 64, 1024, 16000),
        (1, 1, 32768, 737),
        (1, 1, 131072, 466),
    ],
)
def test_decode_of_120b_on_h200(ranks, streams, context, wanted):
    limit = decode_limit(placed(ranks), H200, streams, context)
    assert limit.tokens_per_s == pytest.approx(wanted, rel=0.03)
    assert limit.note == ""


@pytest.mark.parametrize(
    ("ranks", "prompts", "tokens", "wanted"), [(1, 1, 8192, 87_000), (4, 1, 65536, 350_000), (4, 64, 1024, 350_000)]
)
def test_prefill_of_120b_on_h200(ranks, prompts, tokens, wanted):
    assert prefill_limit(placed(ranks), H200, prompts, tokens).tokens_per_s == pytest.approx(wanted, rel=0.04)


@pytest.mark.parametrize(("prompts", "busy"), [(1, 1), (2, 2), (3, 1.5), (64, 2)])
def test_a_prompt_is_computed_by_one_replica(prompts, busy):
    one = prefill_limit(placed(), H200, 1, 8192).tokens_per_s
    assert prefill_limit(placed(dp=2), H200, prompts, 8192).tokens_per_s == pytest.approx(busy * (one or 0))


def test_operations_of_a_token_are_two_for_each_weight_that_it_meets():
    layer = 2880 * (4096 + 512 + 512) + 4096 * 2880 + 128 * 2880 + 4 * (5760 * 2880 + 2880 * 2880)
    assert token_flops(placed()) == 2 * 36 * layer
    assert token_flops(placed(packed=False)) == 2 * 36 * layer
    assert token_flops(placed()) == pytest.approx(9.1e9, rel=0.002)


def test_a_short_prompt_is_bound_by_the_bytes_of_its_experts():
    short = prefill_limit(placed(), H200, 1, 256).tokens_per_s
    assert short is not None
    assert short == pytest.approx(256 * 4.58e12 / step_bytes(placed(), 256, 0).total)


def test_the_rank_that_reads_most_decides():
    tp_bytes = [step_bytes(placed(4), 1, 1024, rank).total for rank in range(4)]
    assert tp_bytes[0] == tp_bytes[1] == tp_bytes[2] > tp_bytes[3]  # 23, 23, 23, 21 groups
    no_reduce = Ceiling("x", 1e12, None, {4: ((1, 0.0), (8, 0.0))})
    assert decode_limit(placed(4), no_reduce, 1, 1024).tokens_per_s == pytest.approx(1e12 / tp_bytes[0])


def test_replicas_share_the_streams():
    one, two = decode_limit(placed(), H200, 32, 1024), decode_limit(placed(dp=2), H200, 64, 1024)
    assert two.tokens_per_s == pytest.approx(2 * (one.tokens_per_s or 0))
    assert placed(dp=2).share(5) == 3


def test_a_plan_reduces_where_it_divides():
    assert all_reduces(placed(4)) == 72
    assert all_reduces(placed(4, plan=EP)) == 36
    assert all_reduces(placed()) == 0
    whole_attention = step_bytes(placed(4, plan=EP), 1, 1024)
    assert whole_attention.attention == step_bytes(placed(), 1, 1024).attention
    busiest = busiest_rank(LARGE, 1, 4)
    assert whole_attention.experts == pytest.approx(busiest * step_bytes(placed(), 1, 1024).experts / 4)


def test_a_context_within_the_window_is_read_once_in_every_layer():
    assert step_bytes(placed(), 3, 50).cache == pytest.approx(3 * 36 * 2048 * 50)


def test_what_is_not_known_is_not_made_up():
    assert decode_limit(placed(), None, 1, 1024).tokens_per_s is None
    assert prefill_limit(placed(), None, 1, 1024).tokens_per_s is None
    h100 = ceiling_of("NVIDIA H100 80GB HBM3")
    limit = decode_limit(placed(2), h100, 1, 1024)
    assert limit.tokens_per_s == pytest.approx(3.0e12 / step_bytes(placed(2), 1, 1024).total)
    assert limit.note == "all-reduces of 2 ranks not measured, not counted"
    single_precision = dataclasses.replace(placed(), dtype="float32")
    assert prefill_limit(single_precision, H200, 1, 1024).tokens_per_s is None
