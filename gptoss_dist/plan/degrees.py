"""Degrees of parallelism: world size = dp × tp, and rank = dp_rank × tp + tp_rank.

`tp` counts the ranks of one replica; inside a replica attention, vocabulary and experts each lie over those same ranks
in the way the plan says, so expert parallelism needs no axis of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptoss_dist.errors import ConfigError, WorldSizeError
from gptoss_dist.plan.rules import experts_are_dealt_out, experts_are_sliced, heads_are_dealt_out, rules_of
from gptoss_dist.schema.plan import AttentionPart, ExpertPart, PlanConf, VocabularyPart
from gptoss_dist.shapes import GROUP, Shape


@dataclass(frozen=True)
class Degrees:
    """How many replicas, and how many ranks make one replica."""

    dp: int
    tp: int

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.dp * self.tp

    def dp_rank(self, rank: int) -> int:
        """The replica that `rank` belongs to."""
        return rank // self.tp

    def tp_rank(self, rank: int) -> int:
        """The place of `rank` inside its replica."""
        return rank % self.tp


def resolve_degrees(plan: PlanConf, world_size: int | None, devices: int) -> Degrees:
    """Fill in the degree that the plan leaves open.

    `world_size` is what a launcher started; None means nothing is started yet, and then an open degree takes the
    `devices` of this machine. Raises WorldSizeError when ranks started and ranks needed differ, naming both numbers.
    """
    if plan.dp is not None and plan.tp is not None:
        degrees = Degrees(plan.dp, plan.tp)
        if world_size is not None and world_size != degrees.world_size:
            raise WorldSizeError(
                f"plan={plan.name} needs {degrees.world_size} ranks (plan.dp={plan.dp} × plan.tp={plan.tp}), and "
                f"{world_size} {'was' if world_size == 1 else 'were'} started. Start {degrees.world_size} ranks, or "
                f"change plan.dp or plan.tp so that they multiply to {world_size}."
            )
        return degrees
    ranks, who = (devices, "of devices here") if world_size is None else (world_size, "of ranks started")
    fixed_name, fixed = ("dp", plan.dp) if plan.dp is not None else ("tp", plan.tp)
    assert fixed is not None, "checked when the run was composed"
    if ranks % fixed:
        raise WorldSizeError(
            f"plan={plan.name} divides its ranks by plan.{fixed_name}={fixed}, and the number {who} is {ranks}, "
            f"no multiple of it. Start a multiple of {fixed} ranks, or change plan.{fixed_name}."
        )
    return Degrees(fixed, ranks // fixed) if fixed_name == "dp" else Degrees(ranks // fixed, fixed)


def choose_plan(shape: Shape, ranks: int) -> tuple[PlanConf, str]:
    """What `plan=auto` becomes for `ranks` ranks, and why in one sentence.

    Tensor parallelism over as many ranks as the key-value heads (and vocabulary and experts) allow: every rank then
    reads an equal share of every weight it uses. What is left over becomes replicas.
    """
    if ranks == 1:
        return PlanConf(name="single", dp=1, tp=1), "one rank"
    tp = max(size for size in range(1, ranks + 1) if ranks % size == 0 and _all_divides(shape, size))
    chosen = PlanConf(
        name="tp" if tp == ranks else "dp_tp",
        dp=ranks // tp,
        tp=tp,
        attention=AttentionPart.tp,
        vocabulary=VocabularyPart.tp,
        experts=ExpertPart.tp,
    )
    if tp == ranks:
        return chosen, f"{ranks} ranks share the {shape.kv_heads} key-value heads evenly"
    return chosen, f"of {ranks} ranks {tp} at most can share one model evenly, so there are {ranks // tp} replicas"


def _all_divides(shape: Shape, tp: int) -> bool:
    problems = [problem_of_heads(shape, tp), *(problem_of_slices(shape, tp, packed) for packed in (True, False))]
    return not any(problems) and shape.vocab % tp == 0


def problem_of_heads(shape: Shape, tp: int) -> str | None:
    """Why attention cannot lie over `tp` ranks; None if it can."""
    for name, count in (("query heads", shape.heads), ("key-value heads", shape.kv_heads)):
        if count % tp:
            return f"{count} {name} do not divide over {tp} ranks"
    return None


def problem_of_slices(shape: Shape, tp: int, packed: bool) -> str | None:
    """Why experts cannot be sliced over `tp` ranks; None if they can. Packed ones are cut between groups of 32."""
    groups = shape.intermediate // GROUP
    if packed and -(-groups // tp) * (tp - 1) >= groups:
        return f"{groups} groups of {GROUP} columns an expert would leave the last of {tp} ranks without any"
    if not packed and shape.intermediate % tp:
        return f"without MXFP4 an intermediate size of {shape.intermediate} must divide over {tp} ranks"
    return None


def check_plan(plan: PlanConf, shape: Shape, degrees: Degrees, packed: bool) -> None:
    """Raise ConfigError, with the numbers and a way out, when the model cannot lie over the ranks as the plan says.

    The plan's own rules count like the parts of it.
    """
    tp, rules = degrees.tp, rules_of(plan, packed)
    if heads_are_dealt_out(rules) and (problem := problem_of_heads(shape, tp)):
        sizes = [str(size) for size in range(1, shape.kv_heads + 1) if problem_of_heads(shape, size) is None]
        raise ConfigError(f"plan={plan.name} with plan.tp={tp}: {problem}. plan.tp can be {', '.join(sizes)}.")
    if plan.vocabulary is not VocabularyPart.whole and shape.vocab % tp:
        raise ConfigError(
            f"plan={plan.name}: a vocabulary of {shape.vocab} does not divide over {tp} ranks. Change plan.tp, or take "
            "plan.vocabulary=whole."
        )
    if experts_are_dealt_out(rules) and shape.experts % tp:
        raise ConfigError(f"plan={plan.name}: {shape.experts} experts do not divide over {tp} ranks. Change plan.tp.")
    if experts_are_sliced(rules) and (problem := problem_of_slices(shape, tp, packed)):
        raise ConfigError(f"plan={plan.name}: {problem}. Take fewer ranks, or plan.experts=ep.")
