"""Rows of a sharded embedding in Triton, one program a token. The reference is `embedding_reference`.

Shape legend: T tokens, V rows of the vocabulary here, H hidden.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gptoss_dist.kernels.blocks import padded_to_power


def embed(ids_T: torch.Tensor, weight_VH: torch.Tensor, first: int) -> torch.Tensor:
    """See `embedding_reference.embed`. Columns of `weight_VH` must be contiguous."""
    tokens, (rows, hidden) = len(ids_T), weight_VH.shape
    out_TH = torch.empty((tokens, hidden), dtype=weight_VH.dtype, device=weight_VH.device)
    if tokens == 0:
        return out_TH
    assert weight_VH.stride(1) == 1
    _embed_kernel[(tokens,)](
        ids_T,
        weight_VH,
        out_TH,
        ids_T.stride(0),
        weight_VH.stride(0),
        first,
        rows,
        HIDDEN=hidden,
        BLOCK=padded_to_power(hidden),
    )
    return out_TH


@triton.jit
def _embed_kernel(
    ids, weight, out, id_stride, weight_stride, first, rows, HIDDEN: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One token's row, or zeros."""
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(ids + token * id_stride).to(tl.int64) - first
    here = (row >= 0) & (row < rows)
    column = tl.arange(0, BLOCK)
    value = tl.load(weight + row * weight_stride + column, mask=(column < HIDDEN) & here, other=0.0)
    tl.store(out + token * HIDDEN + column, value, mask=column < HIDDEN)
