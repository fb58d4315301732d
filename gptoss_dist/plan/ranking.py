"""The plans that a number of ranks allows, and how fast each could be at best on a kind of GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gptoss_dist.ceilings import Ceiling
from gptoss_dist.errors import ConfigError
from gptoss_dist.limits import Placement, decode_limit
from gptoss_dist.memory import predict
from gptoss_dist.plan.capacity import Capacity, capacity
from gptoss_dist.plan.degrees import Degrees, check_plan
from gptoss_dist.plan.rules import rules_of
from gptoss_dist.schema.plan import AttentionPart, ExpertPart, PlanConf, VocabularyPart
from gptoss_dist.shapes import Shape

_PARTS = {
    "tp": (AttentionPart.tp, VocabularyPart.tp, ExpertPart.tp),
    "ep": (AttentionPart.whole, VocabularyPart.head, ExpertPart.ep),
    "tp_ep": (AttentionPart.tp, VocabularyPart.tp, ExpertPart.ep),
}


@dataclass(frozen=True)
class Candidate:
    """A plan with its degrees, what fits, and its decode limits in tokens a second, one for each number of streams."""

    plan: PlanConf
    degrees: Degrees
    capacity: Capacity
    speeds: tuple[float, ...]

    @property
    def words(self) -> str:
        """The words that ask for it."""
        base = "tp" if self.plan.experts is ExpertPart.whole else self.plan.name
        return f"plan={base} plan.dp={self.degrees.dp} plan.tp={self.degrees.tp}"


def rank_plans(
    shape: Shape,
    packed: bool,
    dtype: str,
    ranks: int,
    ceiling: Ceiling,
    fraction: float,
    context: int,
    streams: tuple[int, ...],
) -> list[Candidate]:
    """Every plan for `ranks` ranks that can be built, those that fit first, then the fastest for `streams[0]`."""
    found = []
    for plan, degrees in _possible(shape, packed, ranks):
        rules = rules_of(plan, packed)
        replica = [predict(shape, rules, degrees, packed, dtype, rank) for rank in range(degrees.tp)]
        room = capacity(shape, replica, ceiling.memory_bytes, fraction, context)
        placement = Placement(shape, packed, dtype, rules, degrees)
        limits = (decode_limit(placement, ceiling, count, context) for count in streams)
        speeds = tuple(limit.tokens_per_s or 0.0 for limit in limits)
        found.append(Candidate(plan, degrees, room, speeds))
    return sorted(found, key=lambda one: (not one.capacity.fits, *(-speed for speed in one.speeds)))


def _possible(shape: Shape, packed: bool, ranks: int) -> Iterator[tuple[PlanConf, Degrees]]:
    for tp in (size for size in range(1, ranks + 1) if ranks % size == 0):
        names = _PARTS if tp > 1 else {"single": (AttentionPart.whole, VocabularyPart.whole, ExpertPart.whole)}
        for name, (attention, vocabulary, experts) in names.items():
            degrees = Degrees(ranks // tp, tp)
            plan = PlanConf(
                name=name, dp=degrees.dp, tp=tp, attention=attention, vocabulary=vocabulary, experts=experts
            )
            try:
                check_plan(plan, shape, degrees, packed)
            except ConfigError:  # these degrees are none for this model
                continue
            yield plan, degrees
