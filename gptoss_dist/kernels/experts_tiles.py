"""Block shapes of the expert kernels, by number of tokens: the one table to tune.

`candidates` are what `tests/gpu/time_experts.py` compares; `choose` picks the first of them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """How one projection is cut into programs."""

    rows: int
    """Weight rows of a program, a multiple of 32."""
    columns: int
    """Routes of one expert that share its unpacked weights."""
    groups: int
    """Groups of 32 contracted columns a step."""
    warps: int
    stages: int
    """Steps in flight, the one at work among them."""
    batched: bool
    """Groups are dealt over the warps (`mma`; few rows, few routes) instead of rows (`wgmma` on Hopper)."""
    late_scale: bool = False
    """Batched only: scales multiply sums of 32 products in float32, not the weights."""
    narrower: tuple[int, ...] = ()
    """Rising widths below `columns`: a tile of few routes multiplies the narrowest that holds them."""
    by_expert: bool = False
    """Programs go through all row tiles of a tile of routes before the next, not through all tiles of routes: what
    the cache has to hold is one expert's weights and activations, not all experts' activations."""


@dataclass(frozen=True)
class Tiles:
    """Both projections; they share the cut into columns."""

    gate_up: Tile
    down: Tile

    def __post_init__(self) -> None:
        """Columns are cut once, and one order of the inner activations serves both."""
        assert self.gate_up.columns == self.down.columns
        assert self.gate_up.batched == self.down.batched


def _tiles(gate_up: Tile, down: Tile | None = None) -> Tiles:
    return Tiles(gate_up, down or gate_up)


def _ladder(rows: int, columns: int, groups: int, warps: int, stages: int) -> Tile:
    """For many tokens, with every width from 32 on, expert by expert."""
    narrower = tuple(width for width in (32, 64, 128) if width < columns)
    return Tile(rows, columns, groups, warps, stages, False, narrower=narrower, by_expert=True)


_DECODE = (
    _tiles(Tile(32, 8, 16, 4, 4, True)),
    _tiles(Tile(32, 8, 16, 4, 4, True), Tile(32, 8, 16, 4, 4, True, late_scale=True)),
    _tiles(Tile(32, 8, 32, 4, 3, True)),
    _tiles(Tile(64, 8, 8, 4, 4, True), Tile(32, 8, 8, 4, 4, True)),
    _tiles(Tile(32, 8, 8, 2, 4, True)),
)
_SOME = (
    _tiles(Tile(64, 16, 8, 4, 4, True)),
    _tiles(Tile(32, 16, 16, 4, 3, True)),
    _tiles(Tile(64, 8, 8, 4, 4, True)),
    _tiles(Tile(128, 16, 4, 4, 4, False)),
    _tiles(Tile(64, 16, 4, 4, 4, False)),
)
_MORE = (
    _tiles(Tile(128, 32, 2, 4, 4, False)),
    _tiles(Tile(128, 32, 4, 4, 4, False)),
    _tiles(Tile(128, 64, 2, 4, 4, False)),
    _tiles(Tile(64, 32, 4, 4, 4, False)),
)
_HUNDREDS = (
    _tiles(_ladder(128, 64, 2, 4, 4)),
    _tiles(_ladder(64, 64, 4, 4, 4)),
    _tiles(_ladder(128, 128, 2, 4, 3)),
    _tiles(Tile(128, 64, 2, 4, 4, False)),
)
_THOUSANDS = (
    _tiles(_ladder(128, 128, 2, 4, 3)),
    _tiles(_ladder(128, 64, 2, 4, 4)),
    _tiles(_ladder(128, 128, 2, 8, 3)),
    _tiles(_ladder(128, 256, 2, 8, 4)),
)
# A program waits for its products before it unpacks more weights (`experts_kernels`), so where two programs of four
# warps fit a multiprocessor, one unpacks while the other multiplies.
_MANY = (
    _tiles(_ladder(128, 128, 2, 4, 3)),
    _tiles(_ladder(128, 128, 2, 4, 4)),
    _tiles(_ladder(64, 128, 4, 4, 3)),
    _tiles(_ladder(128, 256, 2, 8, 3)),
)
_WIDE = _tiles(Tile(32, 16, 2, 4, 2, False))
"""Float32 activations: no tensor cores, so small tiles that need no more registers than there are."""
_OLDER = _tiles(_ladder(128, 128, 2, 8, 3))
_OLDER_ABOVE = 1536
"""For more tokens than so many on GPUs without `wgmma`: larger products need more registers there than there are."""
ROUNDED_ABOVE = 512
"""For more tokens than so many a route's row is rounded to the activations' format before a token's rows are summed, as
the model's own forward rounds it: their bytes in float32 were a thirtieth of a layer's time."""
_UP_TO = ((8, _DECODE), (64, _SOME), (512, _MORE), (1536, _HUNDREDS), (3072, _THOUSANDS))
"""Tokens → candidates: eight distinct routes an expert at most; of 128 experts some 2, 16, 48 and 96; more."""


def candidates(tokens: int) -> tuple[Tiles, ...]:
    """Block shapes worth timing for this many tokens, the one in use first."""
    for most, tiles in _UP_TO:
        if tokens <= most:
            return tiles
    return _MANY


def fewest_tokens() -> tuple[int, ...]:
    """For each set of block shapes the fewest tokens that use it: once each, and all kernels are compiled."""
    return (1, *(most + 1 for most, _ in _UP_TO))


def choose(tokens: int, wide: bool = False, hopper: bool = True) -> Tiles:
    """The block shapes in use for this many tokens; `wide`: activations are float32; `hopper`: the GPU has `wgmma`."""
    if wide:
        return _WIDE
    return candidates(tokens)[0] if hopper or tokens <= _OLDER_ABOVE else _OLDER
