# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
"""What the attention kernels in Triton share: where positions lie in the paged cache, and checks of arguments.

The softmax works in base 2 (`exp2` is one instruction): scores are scaled by log2(e) / √D, sinks by log2(e).

Shape legend: S sequences, N blocks of a table, T rows of the step, Q query heads, K key-value heads of this rank, D
head size, P pages, B tokens a page.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gptoss_dist.kernels.device_facts import capability

_MIN_CAPABILITY = (8, 0)
LOG2_E = tl.constexpr(1.4426950408889634)
NOTHING = tl.constexpr(-1.0e30)
"""The peak of no scores at all: finite, so that differences of peaks are never NaN."""


def unavailable(device: torch.device) -> str | None:
    """Why the kernels cannot run on `device`, or None."""
    if device.type != "cuda":
        return "the built-in Triton attention needs a GPU"
    if capability(device) < _MIN_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        return f"the built-in Triton attention needs compute capability 8.0, and this is {name}"
    return None


def check_cache(
    query_TQD: torch.Tensor, key_PBKD: torch.Tensor, value_PBKD: torch.Tensor, table_SN: torch.Tensor
) -> None:
    """ValueError for what the kernels would read wrongly."""
    page_size, heads, size = key_PBKD.shape[1:]
    if key_PBKD.stride() != value_PBKD.stride() or key_PBKD.stride(3) != 1:
        raise ValueError(f"keys and values need equal strides, the last 1: {key_PBKD.stride()}, {value_PBKD.stride()}.")
    if query_TQD.shape[1] % heads or query_TQD.shape[2] != size or not query_TQD.is_contiguous():
        raise ValueError(
            f"queries {tuple(query_TQD.shape)} must be contiguous, with a multiple of {heads} heads of size {size}."
        )
    if page_size & (page_size - 1) or size & (size - 1):
        raise ValueError(f"pages of {page_size} tokens, heads of {size}: both must be powers of two.")
    if table_SN.dtype != torch.int32 or table_SN.stride(1) != 1:
        raise ValueError(f"a table is int32 with rows in one piece, not {table_SN.dtype} by {table_SN.stride()}.")


@triton.jit
def block_pages(table_row, start, end, BLOCK: tl.constexpr, PAGE_SIZE: tl.constexpr, ALIGNED: tl.constexpr):
    """The pages of positions start … start + BLOCK − 1: one number where they share it, else one for each position.

    `start` may be any position, unless ALIGNED: then it is a multiple of BLOCK. Nothing is read for positions from
    `end` on. Taken a block ahead, so that keys and values never wait for the table.
    """
    if ALIGNED and BLOCK <= PAGE_SIZE:
        pages = tl.load(table_row + start // PAGE_SIZE, mask=start < end, other=0)
    else:
        positions = start + tl.arange(0, BLOCK)
        pages = tl.load(table_row + positions // PAGE_SIZE, mask=positions < end, other=0)
    return pages


@triton.jit
def block_rows(pages, start, page_stride, row_stride, BLOCK: tl.constexpr, PAGE_SIZE: tl.constexpr):
    """Where the rows of positions start … start + BLOCK − 1 begin in the cache, in elements."""
    positions = start + tl.arange(0, BLOCK)
    return pages.to(tl.int64) * page_stride + (positions % PAGE_SIZE) * row_stride
