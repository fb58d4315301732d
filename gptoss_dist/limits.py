"""How fast a plan could be on a GPU at best: bytes over bandwidth, operations over peak. Pure arithmetic, no torch.

Decode, one step of a replica with B requests, on the rank that reads most:

    seconds = max(bytes / read bandwidth, operations / peak) + all-reduces × their time

The bytes are every weight outside the experts once, the experts that B tokens hit, and the keys and values of all B
contexts. A token takes k of E experts; when all are equally likely, an expert is hit with probability 1 - (1 - k/E)^B.
Where whole experts are dealt out, the rank whose experts are hit most decides: with few tokens that is far more than
the average (one token's 4 experts fall on 2 of 4 ranks about as often as on 3). The exchange of logits is not counted.

Prefill: two operations for each weight that a token meets, without those of the attention scores and of lm_head, and
without all-reduces. So all of these are bounds from below on time, and nothing can pass them but by measuring better.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

from gptoss_dist.ceilings import Ceiling
from gptoss_dist.memory import predict, weight_bytes
from gptoss_dist.plan.degrees import Degrees
from gptoss_dist.plan.layout import Piece, pieces
from gptoss_dist.plan.rules import experts_are_dealt_out, experts_are_sliced, heads_are_dealt_out
from gptoss_dist.shapes import Shape


@dataclass(frozen=True)
class Placement:
    """A model as it lies over its ranks; `dtype` is that of everything but packed experts."""

    shape: Shape
    packed: bool
    dtype: str
    rules: Mapping[str, str]
    degrees: Degrees

    def share(self, streams: int) -> int:
        """Requests of the busiest replica when `streams` run at once."""
        return -(-streams // self.degrees.dp)


@dataclass(frozen=True)
class StepBytes:
    """What one rank reads in one step, in bytes."""

    attention: float
    experts: float
    vocabulary: float
    """The rank's part of lm_head, and one row of the embedding for each token."""
    rest: float
    """Router and norms."""
    cache: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.attention + self.experts + self.vocabulary + self.rest + self.cache


@dataclass(frozen=True)
class Limit:
    """The highest speed of all replicas together; None: not known for this GPU, and `note` says why."""

    tokens_per_s: float | None
    note: str = ""


def experts_hit(shape: Shape, tokens: int) -> float:
    """Expected share of a layer's experts that at least one of `tokens` tokens takes."""
    return 1 - (1 - shape.experts_per_token / shape.experts) ** tokens


def busiest_rank(shape: Shape, tokens: int, ranks: int) -> float:
    """How many times the average number of experts hit the busiest of `ranks` ranks has, when whole ones are dealt out.

    The number that a rank has is taken to be normal, with the mean and variance of drawing without replacement; the
    expected largest of several follows from its distribution function (order statistics).
    """
    share, each = experts_hit(shape, tokens), shape.experts / ranks
    mean = each * share
    variance = mean * (1 - share) * (1 - 1 / ranks) * shape.experts / max(1, shape.experts - 1)
    return min(each, mean + math.sqrt(variance) * _largest_of(ranks)) / mean


@functools.cache
def _largest_of(count: int) -> float:
    """The expected largest of `count` standard normal numbers, by the trapezoid rule."""
    normal, step = NormalDist(), 1 / 256
    points = (place * step for place in range(-8 * 256, 8 * 256 + 1))
    return step * sum(x * count * normal.pdf(x) * normal.cdf(x) ** (count - 1) for x in points)


def step_bytes(placement: Placement, tokens: int, context: float, tp_rank: int = 0) -> StepBytes:
    """What `tp_rank` reads when `tokens` requests, each with `context` tokens in the cache, advance by one token."""
    shape, parts = placement.shape, {"attention": 0.0, "experts": 0.0, "vocabulary": 0.0, "rest": 0.0}
    hit, ranks = experts_hit(shape, tokens), placement.degrees.tp
    if experts_are_dealt_out(placement.rules):
        hit *= busiest_rank(shape, tokens, ranks)
    for piece in pieces(shape, placement.packed, placement.rules, placement.degrees.tp, tp_rank):
        size = weight_bytes([piece], placement.dtype)
        if piece.name == "model.embed_tokens.weight":
            parts["vocabulary"] += size * min(1.0, tokens / shape.vocab)
        else:
            kind = _kind(piece)
            parts[kind] += size * (hit if kind == "experts" else 1)
    memory = predict(shape, placement.rules, placement.degrees, placement.packed, placement.dtype, tp_rank)
    window = memory.cache_window * min(1.0, context / shape.sliding_window)
    return StepBytes(**parts, cache=tokens * (context * memory.cache_per_token + window))


def token_flops(placement: Placement, tp_rank: int = 0) -> float:
    """Operations of one prompt token on `tp_rank`: 9.1e9 for gpt-oss-120b on one rank."""
    shape = placement.shape
    count = 0.0
    for piece in pieces(shape, placement.packed, placement.rules, placement.degrees.tp, tp_rank):
        kind = _kind(piece)
        if kind == "vocabulary" or piece.name.endswith(("_scales", "bias", "norm.weight", "sinks")):
            continue
        values = piece.elements * (2 if piece.name.endswith("_blocks") else 1)
        count += 2 * values * (shape.experts_per_token / shape.experts if kind == "experts" else 1)
    return count


def all_reduces(placement: Placement) -> int:
    """All-reduces of one step: after attention and after the experts of every layer, where the plan divides them."""
    rules = placement.rules
    divided = heads_are_dealt_out(rules) + (experts_are_sliced(rules) or experts_are_dealt_out(rules))
    return placement.shape.layers * divided if placement.degrees.tp > 1 else 0


def decode_limit(placement: Placement, ceiling: Ceiling | None, streams: int, context: float) -> Limit:
    """Output tokens a second of `streams` requests at once, each with `context` tokens in the cache."""
    if ceiling is None:
        return Limit(None, "no ceilings are known for this device")
    tokens, note = placement.share(streams), ""
    seconds = _step_seconds(placement, ceiling, tokens, context)
    if count := all_reduces(placement):
        each = ceiling.all_reduce_s(placement.degrees.tp, tokens)
        note = "" if each is not None else f"all-reduces of {placement.degrees.tp} ranks not measured, not counted"
        seconds += count * (each or 0.0)
    return Limit(streams / seconds, note)


def prefill_limit(placement: Placement, ceiling: Ceiling | None, prompts: int, tokens: int) -> Limit:
    """Prompt tokens a second, when `prompts` of `tokens` tokens each arrive at once and go through in one step.

    A prompt is computed by one replica: the one with most of them decides, and without one a replica does nothing.
    """
    if ceiling is None:
        return Limit(None, "no ceilings are known for this device")
    if ceiling.flops is None or placement.dtype == "float32":
        return Limit(None, f"the peak of {placement.dtype} products is not known for this device")
    return Limit(prompts * tokens / _step_seconds(placement, ceiling, placement.share(prompts) * tokens, 0))


def _step_seconds(placement: Placement, ceiling: Ceiling, tokens: int, context: float) -> float:
    ranks = range(placement.degrees.tp)
    seconds = max(step_bytes(placement, tokens, context, rank).total for rank in ranks) / ceiling.read_bytes_per_s
    if ceiling.flops is not None:
        seconds = max(seconds, max(token_flops(placement, rank) for rank in ranks) * tokens / ceiling.flops)
    return seconds


def _kind(piece: Piece) -> str:
    if ".mlp.experts." in piece.name:
        return "experts"
    if ".self_attn." in piece.name:
        return "attention"
    return "vocabulary" if piece.name.startswith(("lm_head", "model.embed_tokens")) else "rest"
