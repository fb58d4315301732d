from __future__ import annotations

import pytest

from gptoss_dist.config import compose_run
from gptoss_dist.errors import PlanError
from gptoss_dist.plan.layout import Piece, pieces
from gptoss_dist.plan.rules import rules_of
from gptoss_dist.plan.verify import check_rules, check_shards
from gptoss_dist.shapes import SIZES

RULES = rules_of(compose_run(["job=plan", "plan=tp"]).plan, packed=True)
PLANNED = list(pieces(SIZES["tiny"], True, RULES, 4, 3))
HELD = {piece.name: piece.local for piece in PLANNED}
SHARDED = [piece.name for piece in PLANNED if piece.local != piece.whole]


def complaint(held: dict[str, tuple[int, ...]], planned: list[Piece] = PLANNED) -> str:
    with pytest.raises(PlanError) as caught:
        check_shards(planned, held, rank=11)
    message = str(caught.value)
    assert message.startswith("rank 11: ")
    assert "\n" not in message
    return message


def test_what_is_as_planned_passes():
    check_shards(PLANNED, HELD, rank=3)
    check_shards(iter(PLANNED), dict(reversed(HELD.items())), rank=3)


@pytest.mark.parametrize("name", [name for name in SHARDED if ".layers." not in name or ".layers.2." in name])
def test_a_module_that_should_be_sharded_and_is_whole_is_named(name):
    piece = next(piece for piece in PLANNED if piece.name == name)
    message = complaint({**HELD, name: piece.whole})
    assert f"{name} is whole" in message
    assert str(list(piece.whole)) in message
    assert str(list(piece.local)) in message
    assert repr(piece.style) in message


def test_another_piece_than_the_planned_one_is_named():
    name = "model.layers.1.mlp.experts.down_proj_scales"
    assert HELD[name] == (8, 64, 3)
    message = complaint({**HELD, name: (8, 64, 4)})
    assert f"{name} holds another piece: [8, 64, 4]" in message
    assert "[8, 64, 3] of [8, 64, 15]" in message


def test_something_that_should_be_whole_and_is_not_is_named():
    message = complaint({**HELD, "model.norm.weight": (16,)})
    assert "model.norm.weight holds another piece: [16]" in message


def test_the_same_number_of_elements_in_another_shape_is_not_the_same():
    name = "model.layers.0.mlp.experts.gate_up_proj_blocks"
    experts, groups, rows, *rest = HELD[name]
    assert name in complaint({**HELD, name: (experts, groups * rows, *rest)})


def test_a_missing_parameter_is_named():
    for name in ("lm_head.weight", "model.layers.3.self_attn.sinks"):
        held = {key: shape for key, shape in HELD.items() if key != name}
        assert f"{name} is planned and the loaded model has no such parameter" in complaint(held)


def test_parameters_that_no_plan_knows_are_named():
    message = complaint({**HELD, "model.layers.0.self_attn.q_norm.weight": (16,), "extra": (1,)})
    assert "extra, model.layers.0.self_attn.q_norm.weight" in message
    assert "no plan knows" in message


def test_nothing_loaded_is_an_error_too():
    complaint({})
    check_shards([], {}, rank=0)


def test_rules_that_match_nothing_are_all_named():
    names = {".".join(name.split(".")[:count]) for name in HELD for count in range(1, 9)}
    check_rules(RULES, names)
    check_rules({}, [])
    with pytest.raises(
        PlanError, match=r"2 of the plan's rules match nothing in the model: lm_haed, model\.layers\.\*\.attn"
    ):
        check_rules({**RULES, "lm_haed": "replicate", "model.layers.*.attn": "colwise"}, names)
