"""How the work of the CUDA expert kernels that stream is cut, by the number of tokens and of an expert's routes.

The one table to tune: `candidates` are what `tests/gpu/time_experts.py` compares; the first of them is in use.
"""

from __future__ import annotations

from dataclasses import dataclass

TILE = 8
"""Routes of a product, as experts_stream.cu has them."""
NARROW = 4.0
"""Routes an expert, in the mean, up to which products of one tile of routes serve: few experts have more."""
MOST_ROUTES = 12.0
"""And up to which weights are streamed: beyond, an expert's routes need more than two tiles."""
_ROUTES_WITHOUT_LIST = 32


@dataclass(frozen=True)
class Shape:
    """How the work is cut."""

    row_tiles: int
    """Of 16 rows, in an item: 1 or 2."""
    column_tiles: int
    """Of `TILE` routes, that share unpacked weights: 1 or 2."""
    warps: int
    """Of a block: those that share staged activations."""
    team_warps: int
    """That share an item's contracted columns, at most; a power of two."""
    ahead: int
    """Quads of four groups of 32 columns that a warp has in flight, at most."""
    blocks: int
    """Of a multiprocessor."""

    @property
    def columns(self) -> int:
        """Routes that share unpacked weights, at most."""
        return TILE * self.column_tiles

    def team(self, groups: int) -> tuple[int, int]:
        """Warps of a team and quads ahead for so many groups: none without work."""
        quads, team_warps = (groups + 3) // 4, self.team_warps
        while team_warps > quads:
            team_warps //= 2
        return team_warps, min(self.ahead, -(-quads // team_warps))

    def shared_bytes(self, groups: int, columns: int) -> int:
        """Sums of two items of every warp, and the activations of so many routes; `groups`: of the wider projection."""
        sums = 2 * 4 * self.warps * self.columns * (16 * self.row_tiles + 4)
        return sums + columns * ((groups + 1) // 2) * 128

    def instance(self, hidden_groups: int, groups: int, listed: bool) -> str:
        """The kernel's name in C++, for groups of 32 of the hidden size and of the intermediate columns here."""
        team_warps, ahead = self.team(hidden_groups)
        down_team_warps, down_ahead = self.team(groups)
        cut = (self.row_tiles, self.column_tiles, self.warps, team_warps, down_team_warps, ahead, down_ahead)
        numbers = (hidden_groups, groups, *cut)
        return f"experts_stream<{', '.join(map(str, numbers))}, {self.blocks}, {'true' if listed else 'false'}>"


_FEW = (Shape(1, 1, 8, 4, 3, 2), Shape(1, 1, 4, 4, 3, 4), Shape(1, 1, 8, 8, 3, 2), Shape(1, 1, 16, 4, 3, 1))
_MORE = (
    *(Shape(1, 1, 16, 4, 3, 1), Shape(1, 1, 16, 2, 4, 1), Shape(2, 1, 16, 4, 2, 1), Shape(2, 1, 16, 2, 3, 1)),
    *(Shape(1, 1, 16, 1, 4, 1), Shape(2, 1, 16, 1, 3, 1), Shape(2, 1, 8, 1, 3, 2)),
)
_WIDE = (
    *(Shape(1, 2, 16, 4, 3, 1), Shape(1, 2, 16, 2, 3, 1), Shape(1, 2, 16, 2, 4, 1), Shape(1, 2, 16, 1, 3, 1)),
    *(Shape(2, 2, 8, 2, 3, 1), Shape(2, 2, 16, 2, 2, 1), Shape(1, 2, 8, 2, 4, 1)),
)
_MOST_FEW = 4
"""Tokens up to which an item has a block of its own."""


def candidates(tokens: int, routes_per_expert: float) -> tuple[Shape, ...]:
    """Shapes worth timing, the one in use first; none where streaming does not pay.

    `routes_per_expert`: how many an expert of the model gets in the mean.
    """
    if tokens > TILE and routes_per_expert > NARROW:
        return _WIDE if routes_per_expert <= MOST_ROUTES else ()
    return _FEW if tokens <= _MOST_FEW else _MORE


def needs_list(tokens: int, top_k: int) -> bool:
    """Whether the routes are listed first: they are more than lanes of a warp, or may be too many of one expert."""
    return tokens > TILE or tokens * top_k > _ROUTES_WITHOUT_LIST


def fewest_tokens(top_k: int, experts: int) -> tuple[int, ...]:
    """As `experts_tiles.fewest_tokens`, for these kernels, and the fewest that are not streamed any more."""
    found, before = [], None
    for tokens in range(1, int(MOST_ROUTES * experts / top_k) + TILE + 2):
        chosen = candidates(tokens, tokens * top_k / experts)[:1], needs_list(tokens, top_k)
        if chosen != before:
            found.append(tokens)
        before = chosen
    return tuple(found)
