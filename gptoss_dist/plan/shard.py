"""What a style cuts: which dimension of a tensor, and how much of it each rank gets.

Cuts follow `torch.chunk`: every rank takes ⌈size/ranks⌉, the last one what is left, so 90 groups over 4 ranks are
23, 23, 23, 21. The shapes are those of the parameters as loaded. Packed experts hold the rows of `gate_up_proj` by
groups of 32 columns of `down_proj` (64 rows, gate and up in turn), so that both are cut at the same place:

    gate_up_proj_blocks [E, G, 64, H/32, 16]    gate_up_proj_scales [E, G, 64, H/32]    gate_up_proj_bias [E, G, 64]
    down_proj_blocks    [E, H, G, 16]           down_proj_scales    [E, H, G]           down_proj_bias    [E, H]

E experts, H hidden, G groups of 32 of the intermediate dimension.
"""

from __future__ import annotations

from collections.abc import Callable

from gptoss_dist.errors import ConfigError

_SLICED_EXPERTS = {
    "gate_up_proj_blocks": 1,
    "gate_up_proj_scales": 1,
    "down_proj_blocks": 2,
    "down_proj_scales": 2,
    "gate_up_proj": 2,
    "down_proj": 1,
    "gate_up_proj_bias": 1,
    "down_proj_bias": None,
}
"""The dimension of each expert parameter that runs along the intermediate size, packed and dense."""


def _out_features(_: str, ndim: int) -> int | None:
    return max(ndim - 2, 0)


def _in_features(parameter: str, ndim: int) -> int | None:
    return None if parameter == "bias" else ndim - 1


def _expert_slices(parameter: str, _: int) -> int | None:
    return _SLICED_EXPERTS[parameter]


def _dimension(dim: int | None) -> Callable[[str, int], int | None]:
    return lambda _parameter, _ndim: dim


STYLES: dict[str, Callable[[str, int], int | None]] = {
    "colwise": _out_features,
    "colwise_gather_output": _out_features,
    "rowwise": _in_features,
    "rowwise_split_input": _in_features,
    "embedding_rowwise": _dimension(0),
    "embedding_colwise": _dimension(1),
    "grouped_gemm": _dimension(0),
    "ep_dispatch_experts": _dimension(None),
    "gptoss_expert_slices": _expert_slices,
    "gptoss_local": _dimension(None),
    "replicate": _dimension(None),
}
"""Style → which dimension it cuts, given the parameter's last name and its number of dimensions; None: none."""


def chunk(size: int, ranks: int, rank: int) -> tuple[int, int]:
    """Start and length of the piece of `rank` when `size` things are cut over `ranks`, as `torch.chunk` does."""
    step = -(-size // ranks)
    start = min(rank * step, size)
    return start, min(step, size - start)


def local_shape(name: str, shape: tuple[int, ...], style: str | None, ranks: int, rank: int) -> tuple[int, ...]:
    """What `rank` of `ranks` holds of a parameter of `shape` under `style` (None: all of it).

    Raises ConfigError for a style that cuts a dimension which the parameter lacks.
    """
    dim = None if style is None else STYLES[style](name.rpartition(".")[2], len(shape))
    if dim is None:
        return shape
    if dim >= len(shape):
        raise ConfigError(f"plan.rules: {style} cuts dimension {dim + 1}, and {name} has {len(shape)}. Drop the rule.")
    return (*shape[:dim], chunk(shape[dim], ranks, rank)[1], *shape[dim + 1 :])
