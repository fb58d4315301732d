"""A plan as a table: module or parameter name (`*` for the layer number) to the name of a parallel style.

Most styles are transformers' own (`transformers/distributed/tensor_parallel.py`, `expert_parallel.py`); the two that
begin with `gptoss_` are registered by `gptoss_dist.model.styles`. A rule on a module also holds for its own parameters,
unless a parameter has a rule of its own: that is how transformers reads the table, and how `style_of` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from gptoss_dist.errors import ConfigError
from gptoss_dist.plan.shard import STYLES
from gptoss_dist.schema.plan import AttentionPart, ExpertPart, PlanConf, VocabularyPart

ATTENTION = "model.layers.*.self_attn"
EXPERTS = "model.layers.*.mlp.experts"
LOCAL = "gptoss_local"
EXPERT_SLICES = "gptoss_expert_slices"
EXPERT_STYLES = frozenset({"grouped_gemm", "ep_dispatch_experts"})
"""Styles that transformers applies on the mesh of experts (its `ep_plan`), all others on the tensor mesh."""

_OF_EXPERTS = EXPERT_STYLES | {EXPERT_SLICES, LOCAL, "replicate"}

_PACKED = ("gate_up_proj_blocks", "gate_up_proj_scales", "down_proj_blocks", "down_proj_scales")
_DENSE = ("gate_up_proj", "down_proj")
_BIASES = ("gate_up_proj_bias", "down_proj_bias")


def rules_of(plan: PlanConf, packed: bool) -> dict[str, str]:
    """The whole table of a plan; `packed`: the experts are MXFP4 blocks and scales.

    Raises ConfigError for a style that is not known here, or not where its rule stands.
    """
    rules: dict[str, str] = {}
    if plan.vocabulary is not VocabularyPart.whole:
        rules["lm_head"] = "colwise_gather_output"
    if plan.vocabulary is VocabularyPart.tp:
        rules["model.embed_tokens"] = "embedding_rowwise"
    if plan.attention is AttentionPart.tp:
        rules |= {f"{ATTENTION}.{name}_proj": "colwise" for name in "qkv"}
        rules |= {f"{ATTENTION}.o_proj": "rowwise", f"{ATTENTION}.sinks": "colwise", ATTENTION: LOCAL}
    if plan.experts is ExpertPart.tp:
        rules[EXPERTS] = EXPERT_SLICES
    if plan.experts is ExpertPart.ep:
        rules |= {f"{EXPERTS}.{name}": "grouped_gemm" for name in (_PACKED if packed else _DENSE) + _BIASES}
        rules[EXPERTS] = "ep_dispatch_experts"
    for name, style in plan.rules.items():
        _check_rule(name, style)
    return rules | plan.rules


def heads_are_dealt_out(rules: Mapping[str, str]) -> bool:
    """Whether each rank computes, and caches, key-value heads of its own."""
    return style_of(f"{ATTENTION}.k_proj.weight", rules) == "colwise"


def experts_are_sliced(rules: Mapping[str, str]) -> bool:
    """Whether each rank holds a slice of every expert."""
    return rules.get(EXPERTS) == EXPERT_SLICES


def experts_are_dealt_out(rules: Mapping[str, str]) -> bool:
    """Whether each rank holds whole experts of its own."""
    return "grouped_gemm" in rules.values()


def generic(name: str) -> str:
    """`name` with the layer number replaced by `*`."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def _check_rule(name: str, style: str) -> None:
    if style not in STYLES:
        raise ConfigError(f"plan.rules: {name}: {style!r} is no style known here. Known: {', '.join(STYLES)}.")
    if style == EXPERT_SLICES and name != EXPERTS:
        raise ConfigError(f"plan.rules: {name}: {style} is a style of {EXPERTS} alone.")
    if name.startswith(EXPERTS) and style not in _OF_EXPERTS:
        raise ConfigError(
            f"plan.rules: {name}: {style} would cut gate and up, or a byte of two values, at the wrong place. Take "
            "plan.experts=tp or plan.experts=ep."
        )


def style_of(parameter: str, rules: Mapping[str, str]) -> str | None:
    """The style of a parameter: its own rule, else that of the module that holds it, else None (whole)."""
    name = generic(parameter)
    return rules.get(name) or rules.get(name.rpartition(".")[0])


def unmatched(rules: Mapping[str, str], names: Iterable[str]) -> list[str]:
    """The rules that name no module and no parameter of the model."""
    known = {generic(name) for name in names}
    return sorted(set(rules) - known)
