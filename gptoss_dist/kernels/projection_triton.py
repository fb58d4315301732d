"""Matrix products of few tokens in Triton, a candidate beside torch's own. The reference is `projection_reference`.

Each program takes some rows of the weight and reads them once for all tokens. One token: multiply and add. More, up to
`FEW_TOKENS`: tensor cores, the tokens padded to 16. Beyond that `torch.nn.functional.linear`. The sum, bias and
residual are float32 and rounded once.

Shape legend: T tokens, C columns in, O columns out.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gptoss_dist.kernels import projection_reference

FEW_TOKENS = 16
_ROWS_ONE, _COLUMNS_ONE = 4, 1024
_ROWS_FEW, _COLUMNS_FEW = 32, 128


def project(
    x_TC: torch.Tensor, weight_OC: torch.Tensor, bias_O: torch.Tensor | None, residual_TO: torch.Tensor | None = None
) -> torch.Tensor:
    """See `projection_reference.project`. Columns must be contiguous."""
    (tokens, columns), rows = x_TC.shape, weight_OC.shape[0]
    if not 0 < tokens <= FEW_TOKENS:
        return projection_reference.project(x_TC, weight_OC, bias_O, residual_TO)
    out_TO = residual_TO
    if out_TO is None:
        out_TO = torch.empty((tokens, rows), dtype=x_TC.dtype, device=x_TC.device)
    assert x_TC.stride(1) == weight_OC.stride(1) == out_TO.stride(1) == 1
    operands = (x_TC, weight_OC, weight_OC if bias_O is None else bias_O, out_TO)
    options = {"COLUMNS": columns, "HAS_BIAS": bias_O is not None, "HAS_RESIDUAL": residual_TO is not None}
    if tokens == 1:
        _project_one_kernel[(triton.cdiv(rows, _ROWS_ONE),)](
            *operands,
            rows,
            weight_OC.stride(0),
            BLOCK_ROWS=_ROWS_ONE,
            BLOCK_COLUMNS=_COLUMNS_ONE,
            **options,
        )
    else:
        _project_few_kernel[(triton.cdiv(rows, _ROWS_FEW),)](
            *operands,
            tokens,
            rows,
            x_TC.stride(0),
            weight_OC.stride(0),
            out_TO.stride(0),
            BLOCK_ROWS=_ROWS_FEW,
            BLOCK_COLUMNS=_COLUMNS_FEW,
            num_stages=4,
            **options,
        )
    return out_TO


@triton.jit
def _project_one_kernel(
    x, weight, bias, out, rows, weight_stride,
    COLUMNS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """BLOCK_ROWS rows of the weight times one token; products are summed over the tile only at the end."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    in_rows = row < rows
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], dtype=tl.float32)
    for first in range(0, COLUMNS, BLOCK_COLUMNS):
        column = first + tl.arange(0, BLOCK_COLUMNS)
        inside = column < COLUMNS
        place = weight + row[:, None] * weight_stride + column[None, :]
        tile = tl.load(place, mask=in_rows[:, None] & inside[None, :], other=0.0)
        vector = tl.load(x + column, mask=inside, other=0.0).to(tl.float32)
        total += tile.to(tl.float32) * vector[None, :]
    value = tl.sum(total, axis=1)
    if HAS_BIAS:
        value += tl.load(bias + row, mask=in_rows, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        value += tl.load(out + row, mask=in_rows, other=0.0).to(tl.float32)
    tl.store(out + row, value.to(out.dtype.element_ty), mask=in_rows)


@triton.jit
def _project_few_kernel(
    x, weight, bias, out, tokens, rows, x_stride, weight_stride, out_stride,
    COLUMNS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """BLOCK_ROWS rows of the weight times up to 16 tokens; float32 operands are not rounded to TF32."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token = tl.arange(0, 16)
    in_rows, in_tokens = row < rows, token < tokens
    total = tl.zeros([BLOCK_ROWS, 16], dtype=tl.float32)
    for first in range(0, COLUMNS, BLOCK_COLUMNS):
        column = first + tl.arange(0, BLOCK_COLUMNS)
        inside = column < COLUMNS
        place = weight + row[:, None] * weight_stride + column[None, :]
        tile = tl.load(place, mask=in_rows[:, None] & inside[None, :], other=0.0)
        vectors = tl.load(
            x + token[None, :] * x_stride + column[:, None], mask=inside[:, None] & in_tokens[None, :], other=0.0
        )
        total = tl.dot(tile, vectors, total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias + row, mask=in_rows, other=0.0).to(tl.float32)[:, None]
    place = out + token[None, :] * out_stride + row[:, None]
    inside = in_rows[:, None] & in_tokens[None, :]
    if HAS_RESIDUAL:
        total += tl.load(place, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, total.to(out.dtype.element_ty), mask=inside)
