"""Top-k, top-p and min-p in Triton, without sorting. The reference is `truncation_reference`: the same tokens stay.

    best of each block ─► 16 coarse bins of distances ─► 16 fine ones in the coarse one that holds the border
        ─► a list of the tokens in that bin ─► one program a row finds the border in the list ─► -inf beyond it

All that top-k and top-p say about a row is a border: tokens that are farther from the best go, of those at the border
the ids up to a last one stay; min-p moves it nearer. A bin is a range of distances, so the border lies in the first one
up to which counts (top-k) or weights (top-p) reach what is asked for, whatever the widths of the bins. With top-k and
top-p both, the list holds all tokens up to top-k's bin, and top-p looks for its border in it. Where a bin holds many
tokens, as in flat rows or with a large top-k, the list is long and read in chunks: slower, and the same.

Weights are computed anew from the logits by each launch; sums are whole numbers, which add up alike in every order, so
that blocks may add to them and to the list as they come. Nothing is read back.

Shape legend: R rows of logits, L of them that are taken, V vocabulary, B blocks of columns.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gptoss_dist.kernels import dependent_launch
from gptoss_dist.kernels.blocks import blocks_of, padded_to_power
from gptoss_dist.kernels.dependent_launch import let_next_start, wait_for_previous
from gptoss_dist.kernels.truncation_bins_triton import list_kernel, sum_bins_kernel
from gptoss_dist.kernels.truncation_border_triton import border_kernel
from gptoss_dist.kernels.truncation_numbers_triton import EXACT, distance_of, logits_of
from gptoss_dist.kernels.truncation_reference import Cuts

COLUMNS = 2048
"""Of a block."""
CHUNK = 4096
"""Listed tokens that a row's program holds in registers."""
COARSE_BITS, FINE_BITS = 4, 4
"""Of the numbers of bins."""
WARPS, BORDER_WARPS = 4, 16


def truncate(logits_RV: torch.Tensor, rows_L: torch.Tensor, cuts: Cuts) -> torch.Tensor:
    """See `truncation_reference.truncate`; columns must be contiguous."""
    rows, columns, device = len(rows_L), logits_RV.shape[1], logits_RV.device
    assert logits_RV.stride(1) == 1
    cut_LV = torch.empty(rows, columns, dtype=logits_RV.dtype, device=device)
    if not rows:
        return cut_LV
    blocks, stride = blocks_of(columns, COLUMNS), logits_RV.stride(0)
    best_LB = torch.empty(rows, blocks, dtype=torch.float32, device=device)
    # What `truncation_bins_triton` keeps of each row.
    numbers = (1 << COARSE_BITS) + (1 << FINE_BITS) + 1
    record_L = torch.empty(rows, numbers, dtype=torch.int64, device=device)
    listed_LV = torch.empty(rows, columns, dtype=torch.int32, device=device)
    border_L3 = torch.empty(rows, 3, dtype=torch.int32, device=device)
    asked, given = (cuts.rate_L, cuts.top_k_L, cuts.top_p_L), (stride, columns, blocks)
    every = {**EXACT, **dependent_launch.options(device)}
    bins = {"COARSE": COARSE_BITS, "FINE": FINE_BITS, "BLOCKS": padded_to_power(blocks), **every}
    grid, block = (blocks, rows), {"COLUMNS": COLUMNS, "num_warps": WARPS}
    record = {"NUMBERS": numbers, "PADDED": padded_to_power(numbers)}
    _best_kernel[grid](logits_RV, rows_L, best_LB, record_L, *given, **record, **block, **every)
    for again in (False, True):
        sum_bins_kernel[grid](logits_RV, rows_L, *asked, best_LB, record_L, *given, AGAIN=again, **block, **bins)
    list_kernel[grid](logits_RV, rows_L, *asked, best_LB, record_L, listed_LV, *given, **block, **bins)
    border_kernel[(rows,)](
        logits_RV, rows_L, *asked, cuts.farthest_L, best_LB, record_L, listed_LV, border_L3, *given,
        CHUNK=CHUNK, num_warps=BORDER_WARPS, **bins,
    )  # fmt: skip
    _cut_kernel[grid](logits_RV, rows_L, border_L3, cut_LV, stride, columns, **block, **every)
    return cut_LV


@triton.jit
def _best_kernel(
    logits, row_of, best_of_blocks, records, stride, columns, blocks,
    NUMBERS: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """The best logit of a block; nothing is summed yet, nor listed."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    number, block = tl.program_id(1), tl.program_id(0)
    if block == 0:
        place = tl.arange(0, PADDED)
        tl.store(records + number * NUMBERS + place, place.to(tl.int64) * 0, mask=place < NUMBERS)
    logit = logits_of(logits, tl.load(row_of + number), stride, block * COLUMNS + tl.arange(0, COLUMNS), columns)
    tl.store(best_of_blocks + number * blocks + block, tl.max(tl.where(logit == logit, logit, -float("inf"))))


@triton.jit
def _cut_kernel(
    logits, row_of, borders, cut, stride, columns, COLUMNS: tl.constexpr, DEPENDENT: tl.constexpr
):  # fmt: skip
    """A block's logits, -inf beyond the border."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    number = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    best = tl.load(borders + number * 3).to(tl.float32, bitcast=True)
    border, last = tl.load(borders + number * 3 + 1), tl.load(borders + number * 3 + 2)
    logit = logits_of(logits, tl.load(row_of + number), stride, column, columns)
    distance = distance_of(logit, best).to(tl.int32, bitcast=True)
    beyond = (distance > border) | ((distance == border) & (column > last))
    left = tl.where(beyond & (logit == logit), -float("inf"), logit)
    tl.store(cut + number.to(tl.int64) * columns + column, left.to(cut.dtype.element_ty), mask=column < columns)
