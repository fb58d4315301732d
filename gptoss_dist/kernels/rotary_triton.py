"""Rotary positions and the cache write in one launch. The reference is `rotary_reference`.

A program takes one token and `_HEADS` of its heads, so that one token alone still uses several SMs; query, key and
value heads differ only in whether they are rotated and where they go.

Shape legend: T tokens, C = (Q + 2K)·D columns, Q query heads, K key-value heads of this rank, D head size, F = D/2
angles, P pages, B tokens a page.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gptoss_dist.kernels import dependent_launch
from gptoss_dist.kernels.blocks import blocks_of
from gptoss_dist.kernels.dependent_launch import let_next_start, wait_for_previous
from gptoss_dist.kernels.turning import Turning

_HEADS = 8
_TOKENS = 16
"""Whose angles a program makes."""


def rotary_angles(
    position_T: torch.Tensor, inverse_frequency_F: torch.Tensor, attention_scaling: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `rotary_reference.rotary_angles`. The number of angles must be a power of two."""
    tokens, angles = len(position_T), len(inverse_frequency_F)
    cosine_TF, sine_TF = torch.empty((2, tokens, angles), dtype=dtype, device=position_T.device)
    if tokens:
        assert position_T.is_contiguous()
        assert inverse_frequency_F.is_contiguous()
        _angles_kernel[(blocks_of(tokens, _TOKENS),)](
            position_T, inverse_frequency_F, cosine_TF, sine_TF, tokens, attention_scaling,
            ANGLES=angles, TOKENS=_TOKENS, num_warps=2,
        )  # fmt: skip
    return cosine_TF, sine_TF


def rotate_and_store(qkv_TC: torch.Tensor, turning: Turning) -> torch.Tensor:
    """See `rotary_reference.rotate_and_store`. The head size must be a power of two; last dimensions contiguous."""
    cosine_TF, sine_TF, slot_T, key_PBKD, value_PBKD, heads = turning
    tokens = qkv_TC.shape[0]
    query_TQD = torch.empty((tokens, heads.query, heads.size), dtype=qkv_TC.dtype, device=qkv_TC.device)
    if tokens == 0:
        return query_TQD
    assert qkv_TC.stride(1) == key_PBKD.stride(3) == value_PBKD.stride(3) == 1
    assert all(part.is_contiguous() for part in (cosine_TF, sine_TF, slot_T))
    assert key_PBKD.shape[1] == value_PBKD.shape[1]
    _rotate_and_store_kernel[(tokens, blocks_of(heads.rows, _HEADS))](
        qkv_TC,
        cosine_TF,
        sine_TF,
        slot_T,
        query_TQD,
        key_PBKD,
        value_PBKD,
        qkv_TC.stride(0),
        *key_PBKD.stride()[:3],
        *value_PBKD.stride()[:3],
        PAGE_SIZE=key_PBKD.shape[1],
        QUERY_HEADS=heads.query,
        KV_HEADS=heads.key_value,
        HALF=heads.size // 2,
        HEADS=_HEADS,
        num_warps=2,
        **dependent_launch.options(qkv_TC.device),
    )
    return query_TQD


@triton.jit(do_not_specialize=["tokens"])
def _angles_kernel(
    position, inverse_frequency, cosines, sines, tokens, scaling, ANGLES: tl.constexpr, TOKENS: tl.constexpr
):  # fmt: skip
    """Cosine and sine of every angle of TOKENS tokens."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    number = tl.arange(0, ANGLES)
    here = token < tokens
    turns = tl.load(position + token, mask=here, other=0).to(tl.float32)
    angle = turns[:, None] * tl.load(inverse_frequency + number)[None, :]
    place = token[:, None] * ANGLES + number[None, :]
    tl.store(cosines + place, (tl.cos(angle) * scaling).to(cosines.dtype.element_ty), mask=here[:, None])
    tl.store(sines + place, (tl.sin(angle) * scaling).to(sines.dtype.element_ty), mask=here[:, None])


@triton.jit
def _store_halves(place, first, second, mask, HALF: tl.constexpr):
    dtype = place.dtype.element_ty
    tl.store(place, first.to(dtype), mask=mask)
    tl.store(place + HALF, second.to(dtype), mask=mask)


@triton.jit
def _rotate_and_store_kernel(
    qkv, cosines, sines, slot, query, key, value, qkv_stride,
    key_page_stride, key_place_stride, key_head_stride, value_page_stride, value_place_stride, value_head_stride,
    PAGE_SIZE: tl.constexpr, QUERY_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr,
    HEADS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One token, HEADS of its heads: rotate what is query or key, store each where it belongs."""
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    pair = tl.arange(0, HALF)[None, :]
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    exists = (head < QUERY_HEADS + 2 * KV_HEADS) & (pair < HALF)
    source = qkv + token * qkv_stride + head * (2 * HALF) + pair
    first = tl.load(source, mask=exists, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=exists, other=0.0).to(tl.float32)

    cosine = tl.load(cosines + token * HALF + pair).to(tl.float32)
    sine = tl.load(sines + token * HALF + pair).to(tl.float32)
    turned = first * cosine - second * sine
    turned_second = second * cosine + first * sine
    _store_halves(
        query + (token * QUERY_HEADS + head) * (2 * HALF) + pair, turned, turned_second, head < QUERY_HEADS, HALF
    )

    flat = tl.load(slot + token).to(tl.int64)
    page, place = flat // PAGE_SIZE, flat % PAGE_SIZE
    key_head = head - QUERY_HEADS
    is_key = (key_head >= 0) & (key_head < KV_HEADS) & (flat >= 0)
    key_row = key + page * key_page_stride + place * key_place_stride + key_head * key_head_stride
    _store_halves(key_row + pair, turned, turned_second, is_key, HALF)
    value_head = key_head - KV_HEADS
    is_value = (value_head >= 0) & exists & (flat >= 0)
    value_row = value + page * value_page_stride + place * value_place_stride + value_head * value_head_stride
    _store_halves(value_row + pair, first, second, is_value, HALF)
