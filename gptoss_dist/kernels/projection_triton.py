"""Matrix products of few tokens in Triton, beside torch's own. The reference is `projection_reference`.

Each program takes some rows of the weight, whole, and reads them once for all tokens: no sums between programs. One
token: the rows go straight to registers in loads of 16 bytes, all of them under way before the first is used, and are
multiplied and added in float32. More, up to FEW_TOKENS: tensor cores, the tokens padded to 8 or 16, the columns cut
into slices that the warps multiply side by side. Beyond that `torch.nn.functional.linear`. The sum, bias and residual
are float32 and rounded once; the order of the sum follows from the block shape alone.

Shape legend: T tokens, C columns in, O columns out.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, assignment, var-annotated"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gptoss_dist.kernels import dependent_launch, projection_reference
from gptoss_dist.kernels.blocks import blocks_of
from gptoss_dist.kernels.dependent_launch import let_next_start, wait_for_previous
from gptoss_dist.kernels.projection_tiles import FEW_TOKENS, FewTile, OneTile, candidates_few, candidates_one


def project(
    x_TC: torch.Tensor,
    weight_OC: torch.Tensor,
    bias_O: torch.Tensor | None,
    residual_TO: torch.Tensor | None = None,
    one: OneTile = candidates_one[0],
    few: FewTile = candidates_few[0],
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
    options |= dependent_launch.options(x_TC.device)
    if tokens == 1:
        _project_one_kernel[(blocks_of(rows, one.rows),)](
            *operands, rows, weight_OC.stride(0), **one_options(one), **options
        )
    else:
        _project_few_kernel[(blocks_of(rows, few.rows),)](
            *operands,
            tokens,
            rows,
            x_TC.stride(0),
            weight_OC.stride(0),
            out_TO.stride(0),
            **few_options(few, tokens),
            **options,
        )
    return out_TO


def one_options(tile: OneTile) -> dict[str, int]:
    """How the kernels of one token are launched with this block shape."""
    return {"ROWS": tile.rows, "STEP": tile.columns, "num_warps": tile.warps}


def few_options(tile: FewTile, tokens: int) -> dict[str, int]:
    """How the kernels of a few tokens are launched with this block shape."""
    return {
        "ROWS": tile.rows,
        "TOKENS": 8 if tokens <= 8 else FEW_TOKENS,
        "SLICES": tile.slices,
        "STEP": tile.columns,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


@triton.jit
def one_product(
    x, weight, row, in_rows, weight_stride,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Rows [ROWS] of the weight times one token, float32; products are summed over the tile only at the end."""
    COUNT: tl.constexpr = (COLUMNS + STEP - 1) // STEP
    place = weight + row.to(tl.int64)[:, None] * weight_stride
    tiles = ()
    for number in tl.static_range(COUNT):
        column = number * STEP + tl.arange(0, STEP)
        tiles += (tl.load(place + column[None, :], mask=in_rows[:, None] & (column < COLUMNS)[None, :], other=0.0),)
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    vectors = ()  # two dimensions, so that each thread loads what it multiplies
    for number in tl.static_range(COUNT):
        column = (number * STEP + tl.arange(0, STEP))[None, :]
        vectors += (tl.load(x + column, mask=column < COLUMNS, other=0.0),)
    total = tl.zeros([ROWS, STEP], dtype=tl.float32)
    for number in tl.static_range(COUNT):
        total += tiles[number].to(tl.float32) * vectors[number].to(tl.float32)
    return tl.sum(total, axis=1)


@triton.jit
def few_product(
    x, weight, row, in_rows, tokens, x_stride, weight_stride,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr, SLICES: tl.constexpr, STEP: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Rows [ROWS] of the weight times [TOKENS], float32; float32 operands are not rounded to TF32."""
    wide = row.to(tl.int64) * weight_stride
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    part = (tl.arange(0, SLICES) * STEP)[:, None, None]
    token = tl.arange(0, TOKENS)
    total = tl.zeros([SLICES, ROWS, TOKENS], dtype=tl.float32)
    for first in range(0, COLUMNS, SLICES * STEP):
        across = first + part + tl.arange(0, STEP)[None, None, :]
        tile = tl.load(
            weight + wide[None, :, None] + across, mask=in_rows[None, :, None] & (across < COLUMNS), other=0.0
        )
        down = first + part + tl.arange(0, STEP)[None, :, None]
        inside = (down < COLUMNS) & (token < tokens)[None, None, :]
        vectors = tl.load(x + (token * x_stride)[None, None, :] + down, mask=inside, other=0.0)
        total = tl.dot(tile, vectors, total, input_precision="ieee")
    return tl.sum(total, axis=0)


@triton.jit
def _project_one_kernel(
    x, weight, bias, out, rows, weight_stride,
    COLUMNS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr, STEP: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """ROWS rows of the weight times one token."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows = row < rows
    if HAS_BIAS:
        added = tl.load(bias + row, mask=in_rows, other=0.0).to(tl.float32)
    value = one_product(x, weight, row, in_rows, weight_stride, COLUMNS, ROWS, STEP, DEPENDENT)
    if HAS_BIAS:
        value += added
    if HAS_RESIDUAL:
        value += tl.load(out + row, mask=in_rows, other=0.0).to(tl.float32)
    tl.store(out + row, value.to(out.dtype.element_ty), mask=in_rows)


@triton.jit(do_not_specialize=["tokens"])
def _project_few_kernel(
    x, weight, bias, out, tokens, rows, x_stride, weight_stride, out_stride,
    COLUMNS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, SLICES: tl.constexpr, STEP: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """ROWS rows of the weight times up to TOKENS tokens."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.arange(0, TOKENS)
    in_rows = row < rows
    if HAS_BIAS:
        added = tl.load(bias + row, mask=in_rows, other=0.0).to(tl.float32)
    total = few_product(
        x, weight, row, in_rows, tokens, x_stride, weight_stride, COLUMNS, ROWS, TOKENS, SLICES, STEP, DEPENDENT
    )
    if HAS_BIAS:
        total += added[:, None]
    place = out + token[None, :] * out_stride + row[:, None]
    inside = in_rows[:, None] & (token < tokens)[None, :]
    if HAS_RESIDUAL:
        total += tl.load(place, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, total.to(out.dtype.element_ty), mask=inside)
