from __future__ import annotations

import math

import pytest
from shipped import PLANS

from gptoss_dist.plan.layout import Piece, as_loaded, pieces
from gptoss_dist.plan.rules import rules_of, style_of
from gptoss_dist.shapes import SIZES, TensorSpec


def layout(size: str, plan: str, packed: bool, ranks: int) -> list[list[Piece]]:
    rules = rules_of(PLANS[plan], packed)
    return [list(pieces(SIZES[size], packed, rules, ranks, rank)) for rank in range(ranks)]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("packed", "ranks"), [(True, 1), (True, 2), (True, 4), (True, 8), (False, 2), (False, 8)])
def test_local_shapes_of_all_ranks_add_up_to_the_whole(plan, size, packed, ranks):
    by_rank = layout(size, plan, packed, ranks)
    specs = list(SIZES[size].tensors(dense=not packed))
    for spec, *held in zip(specs, *by_rank, strict=True):
        assert {piece.name for piece in held} == {spec.name}
        assert len({piece.whole for piece in held}) == 1
        assert math.prod(held[0].whole) == math.prod(spec.shape)
        total = sum(piece.elements for piece in held)
        cut = [dim for dim, size in enumerate(held[0].whole) if any(piece.local[dim] != size for piece in held)]
        assert len(cut) <= 1, spec.name
        assert total == math.prod(spec.shape) * (1 if cut else ranks), spec.name
        if cut:
            assert held[0].style is not None
            assert sum(piece.local[cut[0]] for piece in held) == held[0].whole[cut[0]]
            assert held[0].local[cut[0]] == max(piece.local[cut[0]] for piece in held)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("plan", ["tp", "tp_ep"])
def test_under_tp_only_small_things_are_whole(plan, packed):
    for piece in layout("120b", plan, packed, 4)[1]:
        if piece.local == piece.whole:
            assert piece.name.endswith(("norm.weight", "router.weight", "router.bias", "o_proj.bias", "down_proj_bias"))


def test_one_rank_holds_everything():
    for plan in PLANS:
        for piece in layout("tiny", plan, True, 1)[0]:
            assert piece.local == piece.whole


def test_shapes_of_a_real_layer_over_four_ranks_by_hand():
    held = [{piece.name: piece.local for piece in rank} for rank in layout("120b", "tp", True, 4)]
    layer = "model.layers.7"
    for rank in range(4):
        groups = [23, 23, 23, 21][rank]
        expected = {
            f"{layer}.self_attn.q_proj.weight": (1024, 2880),
            f"{layer}.self_attn.k_proj.weight": (128, 2880),
            f"{layer}.self_attn.k_proj.bias": (128,),
            f"{layer}.self_attn.o_proj.weight": (2880, 1024),
            f"{layer}.self_attn.o_proj.bias": (2880,),
            f"{layer}.self_attn.sinks": (16,),
            f"{layer}.mlp.router.weight": (128, 2880),
            f"{layer}.mlp.experts.gate_up_proj_blocks": (128, groups, 64, 90, 16),
            f"{layer}.mlp.experts.gate_up_proj_scales": (128, groups, 64, 90),
            f"{layer}.mlp.experts.gate_up_proj_bias": (128, groups, 64),
            f"{layer}.mlp.experts.down_proj_blocks": (128, 2880, groups, 16),
            f"{layer}.mlp.experts.down_proj_scales": (128, 2880, groups),
            f"{layer}.mlp.experts.down_proj_bias": (128, 2880),
            "model.embed_tokens.weight": (50272, 2880),
            "lm_head.weight": (50272, 2880),
            "model.norm.weight": (2880,),
        }
        assert {name: held[rank][name] for name in expected} == expected
    ep = {piece.name: piece.local for piece in layout("120b", "ep", True, 4)[3]}
    assert ep[f"{layer}.mlp.experts.gate_up_proj_blocks"] == (32, 90, 64, 90, 16)
    assert ep[f"{layer}.mlp.experts.down_proj_bias"] == (32, 2880)
    assert ep[f"{layer}.self_attn.q_proj.weight"] == (4096, 2880)
    assert ep["lm_head.weight"] == (50272, 2880)
    assert ep["model.embed_tokens.weight"] == (201088, 2880)


def test_dense_experts_over_four_ranks_by_hand():
    held = {piece.name: piece.local for piece in layout("120b", "tp", False, 4)[2]}
    assert held["model.layers.0.mlp.experts.gate_up_proj"] == (128, 2880, 1440)
    assert held["model.layers.0.mlp.experts.down_proj"] == (128, 720, 2880)
    assert held["model.layers.0.mlp.experts.gate_up_proj_bias"] == (128, 1440)


def test_the_style_of_a_piece_is_that_of_its_rule():
    rules = rules_of(PLANS["tp_ep"], packed=True)
    for piece in pieces(SIZES["tiny"], True, rules, 2, 0):
        assert piece.style == style_of(piece.name, rules)


def test_only_packed_gate_up_changes_its_shape_while_loading():
    for spec in SIZES["120b"].tensors():
        regrouped = as_loaded(spec)
        assert math.prod(regrouped) == math.prod(spec.shape)
        if spec.name.endswith(("gate_up_proj_blocks", "gate_up_proj_scales")):
            assert regrouped == (128, 90, 64, *spec.shape[2:])
        else:
            assert regrouped == spec.shape
    dense = TensorSpec("model.layers.0.mlp.experts.gate_up_proj", (8, 64, 960), "bfloat16")
    assert as_loaded(dense) == dense.shape
