"""`decode_attention` and `prefill_attention` in plain torch: the tables of the fused kernels, read back to the host.

Everything is `attention_reference.paged_attention`; here numbers on the device become its spans.

Shape legend: S sequences, T tokens, N pages a table, Q query and K key-value heads of this rank, D head size, P pages,
B tokens a page.
"""

from __future__ import annotations

import torch

from gptoss_dist.kernels.attention_reference import Span, paged_attention


def decode_attention(
    query_SQD: torch.Tensor,
    key_PBKD: torch.Tensor,
    value_PBKD: torch.Tensor,
    table_SN: torch.Tensor,
    position_S: torch.Tensor,
    sinks_Q: torch.Tensor,
    window: int | None,
    out_SQD: torch.Tensor | None = None,
) -> torch.Tensor:
    """[S, Q, D]: what the token at `position_S` of each sequence sees; zeros where it is -1, a padding row."""
    out_SQD = torch.empty_like(query_SQD) if out_SQD is None else out_SQD
    out_SQD.zero_()
    for row, (position, table) in enumerate(zip(position_S.tolist(), table_SN.tolist(), strict=True)):
        if position >= 0:
            one = query_SQD[row : row + 1]
            out_SQD[row] = paged_attention(one, key_PBKD, value_PBKD, [Span(0, 1, position, table)], sinks_Q, window)[0]
    return out_SQD


def prefill_attention(
    query_TQD: torch.Tensor,
    key_PBKD: torch.Tensor,
    value_PBKD: torch.Tensor,
    table_SN: torch.Tensor,
    first_S: torch.Tensor,
    count_S: torch.Tensor,
    start_S: torch.Tensor,
    sinks_Q: torch.Tensor,
    window: int | None,
    longest: int,  # noqa: ARG001  the fused kernel's grid depends on it
    out_TQD: torch.Tensor | None = None,
) -> torch.Tensor:
    """[T, Q, D]: what each token of each chunk sees; see `attention_prefill.prefill_attention`."""
    chunks = zip(first_S.tolist(), count_S.tolist(), start_S.tolist(), table_SN.tolist(), strict=True)
    spans = [Span(*chunk) for chunk in chunks if chunk[1]]
    found_TQD = paged_attention(query_TQD, key_PBKD, value_PBKD, spans, sinks_Q, window)
    return found_TQD if out_TQD is None else out_TQD.copy_(found_TQD)
