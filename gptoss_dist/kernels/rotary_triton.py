"""Rotary positions and the cache write in one launch. The reference is `rotary_reference`.

A program takes one token and `_HEADS` of its heads, so that one token alone still uses several SMs; query, key and
value heads differ only in whether they are rotated and where they go.

Shape legend: T tokens, C = (Q + 2K)·D columns, Q query heads, K key-value heads of this rank, D head size, P pages, B
tokens a page.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gptoss_dist.kernels import dependent_launch
from gptoss_dist.kernels.dependent_launch import let_next_start, wait_for_previous

_HEADS = 8


def rotate_and_store(
    qkv_TC: torch.Tensor,
    position_T: torch.Tensor,
    slot_T: torch.Tensor,
    inverse_frequency: torch.Tensor,
    attention_scaling: float,
    key_PBKD: torch.Tensor,
    value_PBKD: torch.Tensor,
    query_heads: int,
    kv_heads: int,
    head_size: int,
) -> torch.Tensor:
    """See `rotary_reference.rotate_and_store`. The head size must be a power of two; last dimensions contiguous."""
    tokens = qkv_TC.shape[0]
    query_TQD = torch.empty((tokens, query_heads, head_size), dtype=qkv_TC.dtype, device=qkv_TC.device)
    if tokens == 0:
        return query_TQD
    assert qkv_TC.stride(1) == key_PBKD.stride(3) == value_PBKD.stride(3) == 1
    assert all(part.is_contiguous() for part in (position_T, slot_T, inverse_frequency))
    assert key_PBKD.shape[1] == value_PBKD.shape[1]
    _rotate_and_store_kernel[(tokens, triton.cdiv(query_heads + 2 * kv_heads, _HEADS))](
        qkv_TC,
        position_T,
        slot_T,
        inverse_frequency,
        attention_scaling,
        query_TQD,
        key_PBKD,
        value_PBKD,
        qkv_TC.stride(0),
        *key_PBKD.stride()[:3],
        *value_PBKD.stride()[:3],
        PAGE_SIZE=key_PBKD.shape[1],
        QUERY_HEADS=query_heads,
        KV_HEADS=kv_heads,
        HALF=head_size // 2,
        HEADS=_HEADS,
        num_warps=2,
        **dependent_launch.options(qkv_TC.device),
    )
    return query_TQD


@triton.jit
def _store_halves(place, first, second, mask, HALF: tl.constexpr):
    dtype = place.dtype.element_ty
    tl.store(place, first.to(dtype), mask=mask)
    tl.store(place + HALF, second.to(dtype), mask=mask)


@triton.jit
def _rotate_and_store_kernel(
    qkv, position, slot, inverse_frequency, attention_scaling, query, key, value, qkv_stride,
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

    dtype = qkv.dtype.element_ty
    angle = tl.load(position + token).to(tl.float32) * tl.load(inverse_frequency + tl.arange(0, HALF))
    cosine = (tl.cos(angle) * attention_scaling).to(dtype).to(tl.float32)[None, :]
    sine = (tl.sin(angle) * attention_scaling).to(dtype).to(tl.float32)[None, :]
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
