"""What a rank holds of each module: all of it, or its piece; read from the shapes, not from the plan.

Every function raises PlanError, naming the module, for a shape that the engine's step cannot use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gptoss_dist.errors import PlanError
from gptoss_dist.model.load import local
from gptoss_dist.plan.shard import chunk
from gptoss_dist.shapes import GROUP, Shape


@dataclass(frozen=True)
class Cut:
    """What the rank of place `rank` among the `ranks` of a replica gets of a dimension that is cut."""

    ranks: int
    rank: int

    def first(self, size: int) -> int:
        """Where the piece of this rank begins."""
        return chunk(size, self.ranks, self.rank)[0]

    def piece(self, whole: tuple[int, ...], dim: int) -> tuple[int, ...]:
        """The shape of this rank's piece."""
        return (*whole[:dim], chunk(whole[dim], self.ranks, self.rank)[1], *whole[dim + 1 :])

    def is_cut(self, name: str, held: torch.Tensor, whole: tuple[int, ...], dim: int) -> bool:
        """Whether `held` is this rank's piece of `whole` along `dim`; False if it is whole. Else a PlanError."""
        shape = tuple(held.shape)
        if shape == whole:
            return False
        if shape != self.piece(whole, dim):
            raise _unexpected(name, shape, f"{list(self.piece(whole, dim))} of {list(whole)}")
        return True

    def check_whole(self, name: str, held: torch.Tensor, whole: tuple[int, ...]) -> None:
        """Raise PlanError if `held` is not whole."""
        if tuple(held.shape) != whole:
            raise _unexpected(name, tuple(held.shape), str(list(whole)))


def _unexpected(name: str, shape: tuple[int, ...], wanted: str) -> PlanError:
    return PlanError(
        f"{name} has the shape {list(shape)} on this rank, and backend=engine uses {wanted}. Drop the rule of "
        "plan.rules that cuts it, or take backend=transformers."
    )


def attention_cut(cut: Cut, number: int, attention: Any, shape: Shape) -> bool:
    """Whether the heads of a layer are dealt out; PlanError where one of its projections says something else."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    wanted = {
        "q_proj.weight": ((queries, shape.hidden), 0),
        "k_proj.weight": ((keys, shape.hidden), 0),
        "v_proj.weight": ((keys, shape.hidden), 0),
        "q_proj.bias": ((queries,), 0),
        "k_proj.bias": ((keys,), 0),
        "v_proj.bias": ((keys,), 0),
        "o_proj.weight": ((shape.hidden, queries), 1),
        "sinks": ((shape.heads,), 0),
    }
    base = f"model.layers.{number}.self_attn"
    held = {name: _parameter(attention, name) for name in wanted}
    cuts = {
        name: cut.is_cut(f"{base}.{name}", held[name], *expected)
        for name, expected in wanted.items()
        if held[name] is not None
    }
    if wrong := [name for name in cuts if cuts[name] != cuts["q_proj.weight"]]:
        raise PlanError(
            f"{base}.{wrong[0]} is {_state(cuts[wrong[0]])} and q_proj.weight is {_state(cuts['q_proj.weight'])}. "
            "backend=engine needs all heads dealt out, or none; or take backend=transformers."
        )
    if attention.o_proj.bias is not None:
        cut.check_whole(f"{base}.o_proj.bias", attention.o_proj.bias, (shape.hidden,))
    return cuts["q_proj.weight"]


def experts_cut(cut: Cut, number: int, experts: Any, shape: Shape) -> str | None:
    """What of a layer's experts is cut: "experts" (dealt out), "columns" (sliced), or None.

    Read from the biases: some kernels lay the weights out anew and leave nothing of the old ones.
    """
    base = f"model.layers.{number}.mlp.experts"
    packed = hasattr(experts, "gate_up_proj_blocks")
    columns = (shape.intermediate // GROUP, 2 * GROUP) if packed else (2 * shape.intermediate,)
    gate_up, down = local(experts.gate_up_proj_bias), local(experts.down_proj_bias)
    whole = (shape.experts, *columns)
    if cut.is_cut(f"{base}.down_proj_bias", down, (shape.experts, shape.hidden), 0):
        if tuple(gate_up.shape) != cut.piece(whole, 0):
            raise _unexpected(f"{base}.gate_up_proj_bias", tuple(gate_up.shape), str(list(cut.piece(whole, 0))))
        return "experts"
    return "columns" if cut.is_cut(f"{base}.gate_up_proj_bias", gate_up, whole, 1) else None


def _parameter(module: Any, name: str) -> Any:
    """`q_proj.weight` of a module, as this rank holds it; None where it has none."""
    for part in name.split("."):
        module = getattr(module, part)
    return None if module is None else local(module)


def _state(is_cut: bool) -> str:
    return "cut over the ranks" if is_cut else "whole"
