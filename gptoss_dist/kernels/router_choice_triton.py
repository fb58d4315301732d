"""The router's choice in Triton, from logits on: the best experts of each token, and their weights.

The reference is `router_reference.choose`.

Shape legend: T tokens, E experts, K experts per token.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gptoss_dist.kernels import dependent_launch
from gptoss_dist.kernels.blocks import blocks_of, padded_to_power
from gptoss_dist.kernels.dependent_launch import let_next_start, wait_for_previous

_ROWS = 4
"""Tokens of a program: one for each warp."""


def choose(logits_TE: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `router_reference.choose`."""
    tokens, experts = logits_TE.shape
    index_TK, weight_TK = empty_choice(tokens, top_k, logits_TE.device)
    if tokens:
        assert logits_TE.is_contiguous()
        launch_choice(logits_TE, None, 1, index_TK, weight_TK, experts)
    return index_TK, weight_TK


def empty_choice(tokens: int, top_k: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a choice goes: index_TK int32 and weight_TK float32."""
    index_TK = torch.empty((tokens, top_k), dtype=torch.int32, device=device)
    return index_TK, torch.empty((tokens, top_k), dtype=torch.float32, device=device)


def launch_choice(
    logits: torch.Tensor,
    bias_E: torch.Tensor | None,
    parts: int,
    index_TK: torch.Tensor,
    weight_TK: torch.Tensor,
    experts: int,
) -> None:
    """Choose by logits [T, E], or by float32 parts [parts, T, E] of them that are still to be added, with the bias."""
    tokens, top_k = index_TK.shape
    _choose_kernel[(blocks_of(tokens, _ROWS),)](
        logits,
        logits if bias_E is None else bias_E,
        index_TK,
        weight_TK,
        tokens,
        PARTS=parts,
        HAS_BIAS=bias_E is not None,
        ROWS=_ROWS,
        num_warps=4,
        **choice_constants(experts, top_k),
        **dependent_launch.options(logits.device),
    )


def choice_constants(experts: int, top_k: int) -> dict[str, int]:
    """The constants of `choose_rows` that depend on the model."""
    return {
        "EXPERTS": experts,
        "TOP_K": top_k,
        "BLOCK_EXPERTS": padded_to_power(experts),
        "BLOCK_K": padded_to_power(top_k),
    }


@triton.jit
def _keys(value, expert, EXPERTS: tl.constexpr, BLOCK_EXPERTS: tl.constexpr, NARROW: tl.constexpr):
    """Integers that order as (logit, then lowest id first): one maximum finds both.

    int64; NARROW, for logits whose float32 has 13 zeros at the end (float16, bfloat16): int32, with the id there.
    """
    value = tl.where(value == value, value, -float("inf"))  # NaN: some id in range
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)  # −0 equals 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    place = BLOCK_EXPERTS - 1 - expert
    if NARROW:
        keys = tl.where(expert < EXPERTS, (ordered & -0x2000) | place, -(2**31))
    else:
        keys = tl.where(expert < EXPERTS, (ordered.to(tl.int64) << 32) | place.to(tl.int64), -(2**63))
    return keys


@triton.jit
def _logit(keys, NARROW: tl.constexpr):
    """The logits, float32, of keys."""
    if NARROW:
        bits = (keys ^ ((keys >> 31) & 0x7FFFFFFF)) & -0x2000
    else:
        ordered = (keys >> 32).to(tl.int32)
        bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def choose_rows(
    logits, bias, index, weight, first, tokens, dtype: tl.constexpr, PARTS: tl.constexpr, HAS_BIAS: tl.constexpr,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, ROWS: tl.constexpr, BLOCK_EXPERTS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Tokens first … first + ROWS − 1: the TOP_K largest logits and the softmax over them. A warp has whole rows."""
    token = (first + tl.arange(0, ROWS))[:, None]
    expert = tl.arange(0, BLOCK_EXPERTS)[None, :]
    place = tl.arange(0, BLOCK_K)[None, :]
    inside = (token < tokens) & (expert < EXPERTS)
    value = tl.load(logits + token * EXPERTS + expert, mask=inside, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        value += tl.load(logits + (part * tokens + token) * EXPERTS + expert, mask=inside, other=0.0)
    if HAS_BIAS:
        value += tl.load(bias + expert, mask=expert < EXPERTS, other=0.0).to(tl.float32)
    value = value.to(dtype).to(tl.float32)
    NARROW: tl.constexpr = dtype.primitive_bitwidth == 16 and BLOCK_EXPERTS <= 8192
    LEAST: tl.constexpr = -(2**31) if NARROW else -(2**63)
    keys = _keys(value, expert, EXPERTS, BLOCK_EXPERTS, NARROW)
    chosen = tl.zeros([ROWS, BLOCK_K], dtype=keys.dtype)
    for rank in tl.static_range(TOP_K):
        best = tl.max(keys, axis=1)[:, None]
        keys = tl.where(keys == best, LEAST, keys)
        chosen = tl.where(place == rank, best, chosen)
    value = tl.where(place < TOP_K, _logit(chosen, NARROW), -float("inf"))
    factor = tl.exp(value - tl.max(value, axis=1)[:, None])
    stored = (token < tokens) & (place < TOP_K)
    MASK: tl.constexpr = 0x1FFF if NARROW else 0x7FFFFFFF
    tl.store(index + token * TOP_K + place, BLOCK_EXPERTS - 1 - (chosen.to(tl.int32) & MASK), mask=stored)
    tl.store(weight + token * TOP_K + place, factor / tl.sum(factor, axis=1)[:, None], mask=stored)


@triton.jit(do_not_specialize=["tokens"])
def _choose_kernel(
    logits, bias, index, weight, tokens, PARTS: tl.constexpr, HAS_BIAS: tl.constexpr,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, ROWS: tl.constexpr, BLOCK_EXPERTS: tl.constexpr, BLOCK_K: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """ROWS tokens; logits have the number format of the bias, if there is one, when they are compared."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    choose_rows(
        logits, bias, index, weight, tl.program_id(0) * ROWS, tokens, bias.dtype.element_ty, PARTS, HAS_BIAS,
        EXPERTS, TOP_K, ROWS, BLOCK_EXPERTS, BLOCK_K,
    )  # fmt: skip
