from __future__ import annotations

import random

import pytest
import torch
from shipped import PLANS
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.distributed import expert_parallel  # noqa: F401  registers its styles
from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES

from gptoss_dist.errors import ConfigError
from gptoss_dist.model.styles import register_styles
from gptoss_dist.plan.rules import (
    EXPERT_SLICES,
    EXPERT_STYLES,
    EXPERTS,
    LOCAL,
    experts_are_dealt_out,
    experts_are_sliced,
    generic,
    heads_are_dealt_out,
    rules_of,
    style_of,
    unmatched,
)
from gptoss_dist.plan.shard import STYLES
from gptoss_dist.schema.plan import PlanConf, VocabularyPart
from gptoss_dist.shapes import SIZES

try:
    from transformers.distributed.parallel_utils import _get_parameter_plan, replace_layer_number_by_wildcard
except ImportError:  # transformers 5.22
    from transformers.distributed.tensor_parallel import _get_parameter_plan, replace_layer_number_by_wildcard


@pytest.fixture(scope="module")
def dense_names() -> list[str]:
    """Modules and parameters of transformers' own model."""
    with torch.device("meta"):
        model = GptOssForCausalLM(GptOssConfig.from_dict(SIZES["tiny"].hub_config(dense=True)))
    return [name for name, _ in model.named_modules()] + [name for name, _ in model.named_parameters()]


def packed_parameters() -> list[str]:
    return [spec.name for spec in SIZES["tiny"].tensors()]


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.sinks",
        "model.layers.35.mlp.experts.gate_up_proj_blocks",
        "lm_head.weight",
        "model.embed_tokens",
        "a.0",
        "0.a",
        "w1.weight",
        "a.b2.3",
        "layers.12",
        "",
    ],
)
def test_layer_numbers_become_stars_as_in_transformers(name):
    assert generic(name) == replace_layer_number_by_wildcard(name)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("packed", [True, False])
def test_style_of_reads_a_table_as_transformers_does(plan, packed, dense_names):
    rules = rules_of(PLANS[plan], packed)
    for name in packed_parameters() if packed else dense_names:
        assert style_of(name, rules) == _get_parameter_plan(name, rules)


def test_style_of_reads_any_table_as_transformers_does():
    names = packed_parameters()
    modules = sorted({generic(name).rpartition(".")[0] for name in names})
    styles = list(STYLES)
    chance = random.Random(0)
    keys = [*modules, *{generic(name) for name in names}, "model.layers.*", "model", "nothing.here"]
    for _ in range(200):
        rules = {key: chance.choice(styles) for key in chance.sample(keys, chance.randrange(len(keys)))}
        for name in chance.sample(names, 10):
            assert style_of(name, rules) == _get_parameter_plan(name, rules)


def test_a_parameters_own_rule_wins_over_its_modules():
    rules = {"a.*.b": "colwise", "a.*.b.weight": "replicate"}
    assert style_of("a.3.b.weight", rules) == "replicate"
    assert style_of("a.3.b.bias", rules) == "colwise"
    assert style_of("a.3.b.c.weight", rules) is None  # a grandchild is not meant
    assert style_of("a.3", rules) is None


@pytest.mark.parametrize("plan", PLANS)
def test_every_rule_of_every_plan_matches_something(plan, dense_names):
    assert unmatched(rules_of(PLANS[plan], packed=False), dense_names) == []
    parameters = packed_parameters()
    prefixes = {".".join(name.split(".")[:count]) for name in parameters for count in range(1, 9)}
    assert unmatched(rules_of(PLANS[plan], packed=True), prefixes) == []


def test_rules_that_match_nothing_are_named_sorted():
    rules = dict.fromkeys(("model.layers.*.self_atn", "lm_head", "layers.*.self_attn", "model.norm"), LOCAL)
    names = ["lm_head.weight", "lm_head", "model.layers.0.self_attn", "model.norm"]
    assert unmatched(rules, names) == ["layers.*.self_attn", "model.layers.*.self_atn"]
    assert unmatched({"model.layers.0.self_attn": LOCAL}, names) == ["model.layers.0.self_attn"]  # as transformers


def test_every_style_is_registered_with_transformers():
    register_styles()
    for style in STYLES:
        assert style in ALL_PARALLEL_STYLES.valid_keys(), style
    assert set(STYLES) > EXPERT_STYLES


@pytest.mark.parametrize("packed", [True, False])
def test_experts_of_the_other_layout_are_not_named(packed):
    other = "down_proj" if packed else "down_proj_blocks"
    for plan in PLANS.values():
        assert f"{EXPERTS}.{other}" not in rules_of(plan, packed)


def test_ep_covers_every_parameter_of_the_experts():
    for packed in (True, False):
        rules = rules_of(PLANS["ep"], packed)
        for spec in SIZES["tiny"].tensors(dense=not packed):
            if ".experts." in spec.name:
                assert style_of(spec.name, rules) == "grouped_gemm", spec.name


def test_rules_of_ones_own_come_last():
    own = {"lm_head": "replicate", "model.norm": "replicate"}
    rules = rules_of(PlanConf(name="mine", rules=own, vocabulary=VocabularyPart.tp), packed=True)
    assert rules == {"lm_head": "replicate", "model.embed_tokens": "embedding_rowwise", "model.norm": "replicate"}
    assert rules_of(PLANS["custom"], packed=True) == dict(PLANS["custom"].rules)
    assert type(rules_of(PLANS["custom"], packed=True)) is dict


@pytest.mark.parametrize(
    ("name", "style", "parts"),
    [
        ("lm_head", "colwize", ("lm_head", "'colwize'", "colwise_gather_output")),
        ("lm_head", "", ("lm_head", "no style")),
        ("model.layers.*.self_attn", EXPERT_SLICES, (EXPERT_SLICES, EXPERTS)),
        (f"{EXPERTS}.down_proj_blocks", EXPERT_SLICES, (EXPERT_SLICES, EXPERTS)),
        (f"{EXPERTS}.gate_up_proj_blocks", "colwise", ("wrong place", "plan.experts=tp")),
        (EXPERTS, "rowwise", ("wrong place", "plan.experts=ep")),
    ],
)
def test_a_style_that_cannot_stand_there_is_refused(name, style, parts):
    with pytest.raises(ConfigError) as caught:
        rules_of(PlanConf(name="mine", rules={name: style}), packed=True)
    for part in ("plan.rules", name, *parts):
        assert part in str(caught.value)


def test_what_a_table_does_is_read_off_it():
    expected = {
        "single": (False, False, False),
        "tp": (True, True, False),
        "ep": (False, False, True),
        "tp_ep": (True, False, True),
        "dp_tp": (True, True, False),
        "custom": (True, False, False),
    }
    for name, wanted in expected.items():
        rules = rules_of(PLANS[name], packed=True)
        assert (heads_are_dealt_out(rules), experts_are_sliced(rules), experts_are_dealt_out(rules)) == wanted, name
