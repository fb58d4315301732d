"""What a rank needs, in bytes: weights, and the cache of one request. Pure arithmetic, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gptoss_dist.plan.degrees import Degrees
from gptoss_dist.plan.layout import Piece, pieces
from gptoss_dist.plan.rules import heads_are_dealt_out
from gptoss_dist.shapes import Shape

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
KEPT_WINDOWS = 16
"""For so many pages of full layers the paged cache has one more in the sliding layers: room for a window of 128 tokens,
from which a later prompt can go on, for every 2,048 in the cache."""
_NORMS = ("layernorm.weight", "norm.weight")
"""transformers keeps gpt-oss's norms in float32 where the rest is float16 (`_keep_in_fp32_modules`), not bfloat16."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank: `weights`, and what the cache takes."""

    weights: int
    cache_per_token: int
    """In the layers with full attention, for every token."""
    cache_window: int
    """In the sliding layers, once per request."""
    kept_per_token: int
    """In the sliding layers of the paged cache, for windows that are kept for later prompts (`KEPT_WINDOWS`)."""

    @property
    def paged_per_token(self) -> int:
        """What a token of the paged cache takes, without the windows of requests that run."""
        return self.cache_per_token + self.kept_per_token

    def cache(self, tokens: int) -> int:
        """Bytes of the cache of one request of `tokens` tokens."""
        return tokens * self.cache_per_token + self.cache_window

    def tokens(self, room: int) -> int:
        """The longest request whose cache fits into `room` bytes."""
        return max(0, room - self.cache_window) // self.cache_per_token


def weight_bytes(parts: list[Piece], dtype: str) -> int:
    """Bytes of parameters on a rank when what is not packed is loaded as `dtype`."""
    return sum(_value_bytes(piece, dtype) * piece.elements for piece in parts)


def _value_bytes(piece: Piece, dtype: str) -> int:
    if piece.dtype == "uint8":
        return 1
    return 4 if dtype == "float16" and piece.name.endswith(_NORMS) else DTYPE_BYTES[dtype]


def predict(
    shape: Shape, rules: Mapping[str, str], degrees: Degrees, packed: bool, dtype: str, rank: int
) -> RankMemory:
    """What `rank` (of the world) will hold. The cache is in `dtype`, keys and values of the rank's own heads."""
    tp_rank = degrees.tp_rank(rank)
    parts = list(pieces(shape, packed, rules, degrees.tp, tp_rank))
    heads = shape.kv_heads // (degrees.tp if heads_are_dealt_out(rules) else 1)
    per_layer = 2 * heads * shape.head_dim * DTYPE_BYTES[dtype]
    full = shape.layer_types.count("full_attention")
    sliding = (shape.layers - full) * per_layer
    return RankMemory(
        weights=weight_bytes(parts, dtype),
        cache_per_token=full * per_layer,
        cache_window=sliding * shape.sliding_window,
        kept_per_token=sliding // KEPT_WINDOWS,
    )
