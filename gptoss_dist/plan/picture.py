"""Which part of the model lies on which rank, as an SVG picture: one column a rank, one row a kind of module."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from itertools import accumulate, pairwise

from gptoss_dist.plan.degrees import Degrees
from gptoss_dist.plan.layout import Piece, pieces
from gptoss_dist.shapes import Shape

_ROWS = {
    "embedding": "model.embed_tokens.weight",
    "attention": "model.layers.0.self_attn.q_proj.weight",
    "sinks": "model.layers.0.self_attn.sinks",
    "router": "model.layers.0.mlp.router.weight",
    "experts": "model.layers.0.mlp.experts.down_proj",
    "lm_head": "lm_head.weight",
}
"""Row → the parameter that stands for it; every layer is cut alike."""
_LEFT, _TOP, _CELL, _GAP, _HEIGHT, _EDGE = 110, 64, 150, 12, 44, 20
_FILL, _CUT = "#c9d7e8", "#2f6fb3"


def picture(
    shape: Shape, packed: bool, rules: Mapping[str, str], degrees: Degrees, title: str, weights: list[int]
) -> str:
    """The SVG; `weights`: bytes of each rank of the world."""
    ranks = degrees.world_size
    replica = [_parts(shape, packed, rules, degrees.tp, rank) for rank in range(degrees.tp)]
    width = _LEFT + ranks * (_CELL + _GAP) + _EDGE
    height = _TOP + (len(_ROWS) + 1) * (_HEIGHT + _GAP)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(_EDGE, 24, title, "16"),
    ]
    for rank in range(ranks):
        left = _LEFT + rank * (_CELL + _GAP)
        replica_name = f", replica {degrees.dp_rank(rank)}" if degrees.dp > 1 else ""
        out.append(_text(left, _TOP - 12, f"rank {rank}{replica_name}"))
        tp_rank = degrees.tp_rank(rank)
        for row, name in enumerate(_ROWS):
            starts = list(accumulate((held[name][0] for held in replica), initial=0))
            start, end = list(pairwise(starts))[tp_rank]
            out += _cell(left, _TOP + row * (_HEIGHT + _GAP), start, end, *replica[tp_rank][name][1:])
        bottom = _TOP + len(_ROWS) * (_HEIGHT + _GAP)
        out.append(_text(left, bottom + _HEIGHT / 2, f"{weights[rank] / 1e9:.2f} GB"))
    for row, name in enumerate([*_ROWS, "weights"]):
        out.append(_text(_EDGE, _TOP + row * (_HEIGHT + _GAP) + _HEIGHT / 2 + 4, name))
    return "\n".join([*out, "</svg>"]) + "\n"


def _parts(shape: Shape, packed: bool, rules: Mapping[str, str], tp: int, rank: int) -> dict[str, tuple[int, int, str]]:
    """For each row: how many things the rank holds, how many there are, and what they are."""
    held = {piece.name.removesuffix("_blocks"): piece for piece in pieces(shape, packed, rules, tp, rank)}
    heads, groups = shape.heads, shape.intermediate // 32
    found = {}
    for row, name in _ROWS.items():
        piece = held[name]
        share = _share(piece)
        unit, count = "rows", piece.whole[0]
        if row in ("attention", "sinks"):
            unit, count = "heads", heads
        elif row == "experts":
            unit, count = "experts", shape.experts
            if piece.whole[0] == piece.local[0] and share < 1:
                unit, count = "groups of each expert", groups
        found[row] = (round(share * count), count, unit)
    return found


def _share(piece: Piece) -> float:
    share = 1.0
    for whole, local in zip(piece.whole, piece.local, strict=True):
        share *= local / whole
    return share


def _cell(left: int, top: int, start: int, end: int, count: int, unit: str) -> list[str]:
    """A bar that stands for the whole, the rank's part of it filled."""
    whole = end - start >= count
    first, last = (0, count) if whole else (start, end)
    text = f"whole ({count} {unit})" if whole else f"{first}–{last - 1} of {count} {unit}"
    size = "11" if len(text) > 22 else "12"
    return [
        f'<rect x="{left}" y="{top}" width="{_CELL}" height="16" fill="{_FILL}"/>',
        f'<rect x="{left + _CELL * first / count:.1f}" y="{top}" width="{_CELL * (last - first) / count:.1f}" '
        f'height="16" fill="{_CUT}"/>',
        _text(left, top + 32, text, size),
    ]


def _text(x: float, y: float, text: str, size: str = "13") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}">{escape(text)}</text>'
