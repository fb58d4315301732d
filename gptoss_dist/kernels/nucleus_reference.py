"""The nucleus of a row (top-p, arXiv:1904.09751) in plain torch: the likeliest tokens until their sum reaches top-p.

Probabilities are summed as whole numbers, so that it does not matter in which order a device adds up one row, or many.

Shape legend: K rows of probabilities, N of them with a nucleus, V vocabulary.
"""

from __future__ import annotations

import torch

WHOLE = 2**52
"""A probability of 1: a float32 probability times this is exact down to 2**-28, and sums of them fit an int64."""
ROWS = 16
"""Rows sorted at once: bounds memory."""
BYTES = 48
"""Of each number of such a row, at most: sorted, ordered, summed."""


def keep_nucleus(probabilities_KV: torch.Tensor, rows_N: torch.Tensor, top_p_N: torch.Tensor) -> None:
    """Put 0 in place of what is not in the nucleus; the token that crosses top-p is, of equal ones the lower ids first.

    `probabilities_KV` float32, `rows_N` int64 without repetition, `top_p_N` int64 in parts of `WHOLE`, at least 1. A
    NaN counts as 0 and stays: softmax makes all of a row NaN, or none.
    """
    for first in range(0, len(rows_N), ROWS):
        block_N = rows_N[first : first + ROWS]
        kept_NV = _nucleus(probabilities_KV.index_select(0, block_N), top_p_N[first : first + ROWS].unsqueeze(1))
        probabilities_KV.index_copy_(0, block_N, kept_NV)


def _nucleus(probabilities_NV: torch.Tensor, top_p_N1: torch.Tensor) -> torch.Tensor:
    ordered_NV, order_NV = probabilities_NV.sort(dim=1, descending=True, stable=True)
    parts_NV = ordered_NV.nan_to_num_(0.0).mul_(WHOLE).long()
    before_NV = parts_NV.cumsum(dim=1).sub_(parts_NV)
    cut_NV = before_NV >= top_p_N1
    return probabilities_NV.masked_fill_(torch.empty_like(cut_NV).scatter_(1, order_NV, cut_NV), 0.0)
