"""After loading: does each rank hold what its plan says, no more and no less?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gptoss_dist.errors import PlanError
from gptoss_dist.plan.layout import Piece
from gptoss_dist.plan.rules import unmatched


def check_rules(rules: Mapping[str, str], names: Iterable[str]) -> None:
    """Raise PlanError for a rule that names no module and no parameter of the model."""
    if lost := unmatched(rules, names):
        raise PlanError(
            f"{len(lost)} of the plan's rules match nothing in the model: {', '.join(lost)}. Names "
            "begin with `model.` or `lm_head`, and `*` stands for a layer number; gptoss plan lists them."
        )


def check_shards(planned: Iterable[Piece], loaded: Mapping[str, tuple[int, ...]], rank: int) -> None:
    """Raise PlanError for the first parameter whose shape on this rank is not the planned one.

    `loaded` maps every parameter's name to the shape that `rank` of the replica really holds.
    """
    planned = list(planned)
    for piece in planned:
        if piece.name not in loaded:
            raise PlanError(f"rank {rank}: {piece.name} is planned and the loaded model has no such parameter.")
        shape = loaded[piece.name]
        if shape == piece.local:
            continue
        state = "is whole" if shape == piece.whole else "holds another piece"
        raise PlanError(
            f"rank {rank}: {piece.name} {state}: {list(shape)} where rule {piece.style!r} gives {list(piece.local)} of "
            f"{list(piece.whole)}. This transformers version does not apply the rule as planned; choose another plan "
            "or version, and report it."
        )
    if extra := sorted(set(loaded) - {piece.name for piece in planned}):
        raise PlanError(f"rank {rank}: parameters that no plan knows: {', '.join(extra[:3])}. Was the model altered?")
