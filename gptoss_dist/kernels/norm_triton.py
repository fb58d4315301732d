"""Sums of routes, residual add and RMSNorm in Triton, by tokens. The reference is `norm_reference`.

Shape legend: T tokens, H hidden, K experts per token, P = T·K routes.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gptoss_dist.kernels import dependent_launch
from gptoss_dist.kernels.blocks import blocks_of, padded_to_power
from gptoss_dist.kernels.dependent_launch import let_next_start, wait_for_previous

_WARPS = 8
_SUM_BLOCK = 1024


def add_norm(
    residual_TH: torch.Tensor, update_TH: torch.Tensor | None, weight_H: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """See `norm_reference.add_norm`. Rows may lie apart (any first stride); columns must be contiguous."""
    tokens, hidden = residual_TH.shape
    normed_TH = torch.empty((tokens, hidden), dtype=residual_TH.dtype, device=residual_TH.device)
    if tokens == 0:
        return normed_TH
    update = residual_TH if update_TH is None else update_TH
    assert residual_TH.stride(1) == update.stride(1) == weight_H.stride(0) == 1
    _add_norm_kernel[(tokens,)](
        residual_TH,
        update,
        weight_H,
        normed_TH,
        residual_TH.stride(0),
        update.stride(0),
        epsilon,
        HIDDEN=hidden,
        BLOCK=padded_to_power(hidden),
        HAS_UPDATE=update_TH is not None,
        num_warps=_WARPS,
        **dependent_launch.options(residual_TH.device),
    )
    return normed_TH


def sum_routes(rows_PH: torch.Tensor, index_P: torch.Tensor, like_TH: torch.Tensor, experts: int) -> torch.Tensor:
    """See `norm_reference.sum_routes`. `rows_PH` and `index_P` (any integers) are contiguous."""
    tokens, hidden = like_TH.shape
    out_TH = torch.empty((tokens, hidden), dtype=like_TH.dtype, device=like_TH.device)
    if tokens:
        _sum_routes_kernel[(tokens, blocks_of(hidden, _SUM_BLOCK))](
            rows_PH, index_P, out_TH, experts, TOP_K=index_P.numel() // tokens, HIDDEN=hidden, BLOCK=_SUM_BLOCK
        )
    return out_TH


def add_routes_norm(
    residual_TH: torch.Tensor,
    rows_PH: torch.Tensor,
    index_P: torch.Tensor,
    experts: int,
    weight_H: torch.Tensor,
    epsilon: float,
) -> torch.Tensor:
    """See `norm_reference.add_routes_norm`. `rows_PH` and `index_P` (any integers) are contiguous."""
    tokens, hidden = residual_TH.shape
    normed_TH = torch.empty((tokens, hidden), dtype=residual_TH.dtype, device=residual_TH.device)
    if tokens == 0:
        return normed_TH
    assert residual_TH.stride(1) == weight_H.stride(0) == 1
    assert rows_PH.is_contiguous()
    assert index_P.is_contiguous()
    _add_routes_norm_kernel[(tokens,)](
        residual_TH,
        rows_PH,
        index_P,
        weight_H,
        normed_TH,
        residual_TH.stride(0),
        experts,
        epsilon,
        TOP_K=index_P.numel() // tokens,
        HIDDEN=hidden,
        BLOCK=padded_to_power(hidden),
        num_warps=_WARPS,
        **dependent_launch.options(residual_TH.device),
    )
    return normed_TH


@triton.jit
def normed_row(row, weights, epsilon, HIDDEN: tl.constexpr):
    """RMSNorm of one row of float32 values (zero outside), float32."""
    scale = tl.rsqrt(tl.sum(row * row, axis=0) / HIDDEN + epsilon)
    return weights.to(tl.float32) * (row * scale)


@triton.jit
def normed_tile(tile, weights, epsilon, HIDDEN: tl.constexpr):
    """`normed_row` of each row of a tile."""
    scale = tl.rsqrt(tl.sum(tile * tile, axis=1) / HIDDEN + epsilon)
    return weights.to(tl.float32) * (tile * scale[:, None])


@triton.jit
def _add_norm_kernel(
    residual, update, weight, normed, residual_stride, update_stride, epsilon,
    HIDDEN: tl.constexpr, BLOCK: tl.constexpr, HAS_UPDATE: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One row: residual += update, normed = RMSNorm(residual) · weight."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < HIDDEN
    dtype = residual.dtype.element_ty
    place = residual + token * residual_stride + column
    weights = tl.load(weight + column, mask=inside, other=0.0)
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    row = tl.load(place, mask=inside, other=0.0)
    if HAS_UPDATE:
        added = tl.load(update + token * update_stride + column, mask=inside, other=0.0)
        row = (row.to(tl.float32) + added.to(tl.float32)).to(dtype)
        tl.store(place, row, mask=inside)
    value = normed_row(row.to(tl.float32), weights, epsilon, HIDDEN)
    tl.store(normed + token * HIDDEN + column, value.to(dtype), mask=inside)


@triton.jit
def _add_routes_norm_kernel(
    residual, rows, index, weight, normed, residual_stride, experts, epsilon,
    TOP_K: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One row: residual += Σ of the token's routes, in their order; normed = RMSNorm(residual) · weight."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < HIDDEN
    dtype = residual.dtype.element_ty
    place = residual + token * residual_stride + column
    weights = tl.load(weight + column, mask=inside, other=0.0)
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    row = tl.load(place, mask=inside, other=0.0)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for slot in tl.static_range(TOP_K):
        route = token * TOP_K + slot
        expert = tl.load(index + route)
        here = (expert >= 0) & (expert < experts)
        total += tl.load(rows + route * HIDDEN + column, mask=inside & here, other=0.0)
    row = (row.to(tl.float32) + total).to(dtype)
    tl.store(place, row, mask=inside)
    value = normed_row(row.to(tl.float32), weights, epsilon, HIDDEN)
    tl.store(normed + token * HIDDEN + column, value.to(dtype), mask=inside)


@triton.jit
def _sum_routes_kernel(
    rows, index, out, experts, TOP_K: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """out[token] = Σ over its routes, in their order, of rows[route]; routes of other ranks add nothing."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for slot in tl.static_range(TOP_K):
        route = token * TOP_K + slot
        expert = tl.load(index + route)
        here = (expert >= 0) & (expert < experts)
        total += tl.load(rows + route * HIDDEN + column, mask=here & (column < HIDDEN), other=0.0)
    tl.store(out + token * HIDDEN + column, total.to(out.dtype.element_ty), mask=column < HIDDEN)
