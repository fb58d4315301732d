"""Rows of a sharded embedding in plain torch.

Shape legend: T tokens, V rows of the vocabulary here, H hidden.
"""

from __future__ import annotations

import torch


def embed(ids_T: torch.Tensor, weight_VH: torch.Tensor, first: int) -> torch.Tensor:
    """[T, H]: the rows of ids in [first, first + V), zeros for all others (other ranks' ids; −1 for padding).

    Summed over the ranks it is the whole embedding, since each id has one owner.
    """
    row_T = ids_T.long() - first
    here_T = (row_T >= 0) & (row_T < weight_VH.shape[0])
    rows_TH = weight_VH[row_T.clamp(0, weight_VH.shape[0] - 1)]
    return rows_TH.masked_fill(~here_T.unsqueeze(1), 0)
