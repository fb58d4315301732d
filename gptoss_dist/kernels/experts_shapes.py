"""How the work of the CUDA expert kernels is cut, by number of tokens: the one table to tune.

`candidates` are what `tests/gpu/time_experts.py` compares; the first of them is in use.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_TOKENS = 128
"""Beyond it tiles of more than `COLUMNS` routes share unpacked weights better."""
COLUMNS = 8
"""Routes of a product, as experts_stream.cu has them."""
_ROUTES_WITHOUT_LIST = 32


@dataclass(frozen=True)
class Shape:
    """How the work is cut."""

    row_tiles: int
    """Of 16 rows, in an item: 1 or 2."""
    warps: int
    """Of a block: those that share staged activations."""
    team_warps: int
    """That share an item's contracted columns, at most; a power of two."""
    ahead: int
    """Quads of four groups of 32 columns that a warp has in flight, at most."""
    blocks: int
    """Of a multiprocessor."""

    def cut(self, groups: int) -> tuple[int, int, int, int]:
        """Row tiles, warps, warps of a team and quads ahead for so many contracted groups: none without work."""
        quads, team_warps = (groups + 3) // 4, self.team_warps
        while team_warps > quads:
            team_warps //= 2
        return self.row_tiles, self.warps, team_warps, min(self.ahead, -(-quads // team_warps))

    def shared_bytes(self, groups: int, columns: int) -> int:
        """Sums of two items of every warp, and the activations of so many routes."""
        return 2 * 4 * self.warps * COLUMNS * (16 * self.row_tiles + 4) + columns * ((groups + 1) // 2) * 128

    def instance(self, projection: str, groups: int, listed: bool) -> str:
        """The kernel's name in C++."""
        numbers = ", ".join(map(str, (groups, *self.cut(groups), self.blocks)))
        return f"{projection}_stream<{numbers}, {'true' if listed else 'false'}>"


@dataclass(frozen=True)
class Shapes:
    """Both projections: `down` has half the rows, so that other cuts deal them out evenly."""

    gate_up: Shape
    down: Shape


def _both(*numbers: int) -> Shapes:
    return Shapes(Shape(*numbers), Shape(*numbers))


_FEW = (_both(1, 4, 4, 3, 4), _both(1, 8, 4, 3, 2), _both(1, 16, 4, 3, 1), _both(2, 16, 2, 3, 1))
_SOME = (_both(1, 16, 4, 3, 1), _both(2, 16, 2, 3, 1), _both(1, 16, 1, 4, 1))
_MORE = (_both(2, 16, 2, 3, 1), _both(1, 16, 1, 4, 1), _both(2, 16, 1, 3, 1), _both(2, 8, 1, 3, 2))
_UP_TO = ((4, _FEW), (16, _SOME))
"""Tokens → shapes: a block an item; some items a multiprocessor; many."""


def candidates(tokens: int) -> tuple[Shapes, ...]:
    """Shapes worth timing for this many tokens, the one in use first."""
    return next((shapes for most, shapes in _UP_TO if tokens <= most), _MORE)


def needs_list(tokens: int, top_k: int) -> bool:
    """Whether the routes are listed first: they are more than lanes of a warp, or may be too many of one expert."""
    return tokens > COLUMNS or tokens * top_k > _ROUTES_WITHOUT_LIST


def fewest_tokens(top_k: int) -> tuple[int, ...]:
    """As `experts_tiles.fewest_tokens`, for these kernels, and the fewest that are left to Triton."""
    listed = next(tokens for tokens in range(1, COLUMNS + 2) if needs_list(tokens, top_k))
    return tuple(sorted({1, listed, *(most + 1 for most, _ in _UP_TO), MOST_TOKENS + 1}))
