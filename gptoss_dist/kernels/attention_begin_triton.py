"""What stands before a decode step's attention, in one launch: query, key and value, rotary positions, cache write.

A program takes rows of the weight by pairs, i and i + D/2 of one head, which is what a rotation mixes. Products as in
`projection_triton`; rounded to the number format of the activations before they are turned, as in the separate kernels.

Shape legend: T tokens, H hidden, C = (Q + 2K)·D columns, Q query heads, K key-value heads of this rank, D head size,
F = D/2 angles, P pages, B tokens a page.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gptoss_dist.kernels import dependent_launch
from gptoss_dist.kernels.projection_reference import project
from gptoss_dist.kernels.projection_tiles import FEW_TOKENS, FewTile, OneTile, candidates_few, candidates_one
from gptoss_dist.kernels.projection_triton import few_options, few_product, one_options, one_product
from gptoss_dist.kernels.rotary_triton import rotate_and_store
from gptoss_dist.kernels.turning import Turning


def begin_attention(
    normed_TH: torch.Tensor,
    weight_CH: torch.Tensor,
    bias_C: torch.Tensor | None,
    turning: Turning,
    one: OneTile = candidates_one[0],
    few: FewTile = candidates_few[0],
) -> torch.Tensor:
    """`rotary_reference.rotate_and_store` of `project(normed, weight, bias)`: the queries, [T, Q, D]."""
    cosine_TF, sine_TF, slot_T, key_PBKD, value_PBKD, heads = turning
    (tokens, hidden), half = normed_TH.shape, heads.size // 2
    rows = one.rows if tokens == 1 else few.rows
    if not 0 < tokens <= FEW_TOKENS or rows < 2 or half % (rows // 2):
        return rotate_and_store(project(normed_TH, weight_CH, bias_C), turning)
    query_TQD = torch.empty((tokens, heads.query, heads.size), dtype=normed_TH.dtype, device=normed_TH.device)
    assert normed_TH.stride(1) == weight_CH.stride(1) == key_PBKD.stride(3) == value_PBKD.stride(3) == 1
    assert all(part.is_contiguous() for part in (cosine_TF, sine_TF, slot_T))
    assert key_PBKD.shape[1] == value_PBKD.shape[1]
    _begin_attention_kernel[(weight_CH.shape[0] // rows,)](
        normed_TH,
        weight_CH,
        weight_CH if bias_C is None else bias_C,
        cosine_TF,
        sine_TF,
        slot_T,
        query_TQD,
        key_PBKD,
        value_PBKD,
        tokens,
        normed_TH.stride(0),
        weight_CH.stride(0),
        *key_PBKD.stride()[:3],
        *value_PBKD.stride()[:3],
        COLUMNS=hidden,
        HAS_BIAS=bias_C is not None,
        PAGE_SIZE=key_PBKD.shape[1],
        QUERY_HEADS=heads.query,
        KV_HEADS=heads.key_value,
        HALF=half,
        **({"TOKENS": 1, "SLICES": 1, **one_options(one)} if tokens == 1 else few_options(few, tokens)),
        **dependent_launch.options(normed_TH.device),
    )
    return query_TQD


@triton.jit(do_not_specialize=["tokens"])
def _begin_attention_kernel(
    x, weight, bias, cosines, sines, slot, query, key, value, tokens, x_stride, weight_stride,
    key_page_stride, key_place_stride, key_head_stride, value_page_stride, value_place_stride, value_head_stride,
    COLUMNS: tl.constexpr, HAS_BIAS: tl.constexpr, PAGE_SIZE: tl.constexpr, QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr, SLICES: tl.constexpr,
    STEP: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """ROWS / 2 pairs of rows of one head, for all tokens."""
    PAIRS: tl.constexpr = ROWS // 2
    dtype = query.dtype.element_ty
    head = tl.program_id(0) // (HALF // PAIRS)
    begin = tl.program_id(0) % (HALF // PAIRS) * PAIRS
    number = tl.arange(0, ROWS)  # a pair's rows follow each other
    row = head * (2 * HALF) + begin + number // 2 + number % 2 * HALF
    every = number < ROWS
    if HAS_BIAS:
        added = tl.load(bias + row).to(tl.float32)
    # Asked for before the weights and needed after them: what they say is there by then.
    token = tl.arange(0, TOKENS)
    here = token < tokens
    pair = (begin + tl.arange(0, PAIRS))[:, None]
    turn = token[None, :] * HALF + pair
    if not DEPENDENT:
        cosine = tl.load(cosines + turn, mask=here[None, :], other=0.0).to(tl.float32)
        sine = tl.load(sines + turn, mask=here[None, :], other=0.0).to(tl.float32)
        flat = tl.load(slot + token, mask=here, other=-1).to(tl.int64)
    if TOKENS == 1:
        product = one_product(x, weight, row, every, weight_stride, COLUMNS, ROWS, STEP, DEPENDENT)[:, None]
    else:
        product = few_product(
            x, weight, row, every, tokens, x_stride, weight_stride, COLUMNS, ROWS, TOKENS, SLICES, STEP, DEPENDENT
        )
    if HAS_BIAS:
        product += added[:, None]
    product = product.to(dtype).to(tl.float32)
    first, second = tl.split(tl.permute(tl.reshape(product, (PAIRS, 2, TOKENS)), (0, 2, 1)))

    if DEPENDENT:  # not before the wait that is in the product
        cosine = tl.load(cosines + turn, mask=here[None, :], other=0.0).to(tl.float32)
        sine = tl.load(sines + turn, mask=here[None, :], other=0.0).to(tl.float32)
        flat = tl.load(slot + token, mask=here, other=-1).to(tl.int64)
    if head < QUERY_HEADS + KV_HEADS:
        turned = first * cosine - second * sine
        second = second * cosine + first * sine
        first = turned
    if head < QUERY_HEADS:
        place = query + (token[None, :] * QUERY_HEADS + head) * (2 * HALF) + pair
        tl.store(place, first.to(dtype), mask=here[None, :])
        tl.store(place + HALF, second.to(dtype), mask=here[None, :])
    else:
        page, spot = flat // PAGE_SIZE, flat % PAGE_SIZE
        stored = (flat >= 0)[None, :]
        if head < QUERY_HEADS + KV_HEADS:
            line = page * key_page_stride + spot * key_place_stride + (head - QUERY_HEADS) * key_head_stride
            place = key + line[None, :] + pair
        else:
            line = page * value_page_stride + spot * value_place_stride
            place = value + (line + (head - QUERY_HEADS - KV_HEADS) * value_head_stride)[None, :] + pair
        tl.store(place, first.to(key.dtype.element_ty), mask=stored)
        tl.store(place + HALF, second.to(key.dtype.element_ty), mask=stored)
