# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
"""Attention of chunks of several sequences over a paged cache, in Triton, in one launch.

After FlashAttention-2 (arXiv:2307.08691): one program walks over the keys that a block of queries sees and keeps a
running peak, sum and weighted values; the head's sink joins at the end. All query heads of a key-value head are rows of
the same products, so each tile of keys and values is read once for all of them. What came before a chunk and the chunk
itself are read alike, through the page table.

The grid is flat: program p takes the p-th block of queries, counted from the last one of the last chunk, so that within
a chunk the blocks with the most keys start first; chunks of very different length cost no idle programs.

Shape legend: T rows of the step, S chunks, N blocks of a table, Q query heads, K key-value heads of this rank, D head
size, P pages, B tokens a page.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from gptoss_dist.kernels.attention_tiles import LOG2_E, NOTHING, block_pages, block_rows, check_cache
from gptoss_dist.kernels.blocks import padded_to_power

_FEWEST_PADDED = 64
"""Chunks are looked at in powers of two from here on, each compiled once."""


@dataclass(frozen=True)
class PrefillSetting:
    """How the work is cut: `queries` × query heads of a key-value head are the rows of a program."""

    queries: int = 16
    block: int = 64
    warps: int = 8
    stages: int = 3


FULL = PrefillSetting()
SLIDING = PrefillSetting(block=32, stages=4)
WIDE = PrefillSetting(queries=4, block=32, warps=4, stages=1)
"""For float32, which has no tensor cores: full precision, not speed."""


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
    longest: int,
    out_TQD: torch.Tensor | None = None,
    setting: PrefillSetting | None = None,
) -> torch.Tensor:
    """[T, Q, D] in the dtype of the query: what each token of each chunk sees.

    Chunk s is `count_S` rows from `first_S` on, at positions `start_S` …; `longest` is the largest count, or more. The
    chunks' own keys and values are in their pages already. `table_SN` and the cache: see `decode_attention`. Rows
    that belong to no chunk are left as they are, in `out_TQD`, contiguous, if it is given; a chunk of count 0 does
    nothing. ValueError for shapes and strides that the kernel cannot read.
    """
    check_cache(query_TQD, key_PBKD, value_PBKD, table_SN)
    tokens, query_heads, head_size = query_TQD.shape
    page_size, kv_heads = key_PBKD.shape[1:3]
    group = query_heads // kv_heads
    if setting is None:
        setting = WIDE if query_TQD.dtype == torch.float32 else FULL if window is None else SLIDING
    sequences = len(first_S)
    if out_TQD is None:
        out_TQD = torch.empty_like(query_TQD)
    blocks = min(-(-tokens // setting.queries) + sequences, sequences * -(-longest // setting.queries))
    if not blocks:
        return out_TQD
    padded = max(_FEWEST_PADDED, padded_to_power(sequences))
    _prefill_kernel[(kv_heads, blocks)](
        query_TQD, key_PBKD, value_PBKD, table_SN, first_S, count_S, start_S, sinks_Q, out_TQD,
        sequences, table_SN.stride(0), *key_PBKD.stride()[:3], head_size**-0.5 * LOG2_E.value,
        GROUP=group, GROUP_PADDED=padded_to_power(group), HEAD_SIZE=head_size, PAGE_SIZE=page_size,
        QUERIES=setting.queries, BLOCK=setting.block, SEQUENCES_PADDED=padded,
        WINDOW=window or 0, num_warps=setting.warps, num_stages=setting.stages,
    )  # fmt: skip
    return out_TQD


@triton.jit
def _find(count, sequences, QUERIES: tl.constexpr, SEQUENCES_PADDED: tl.constexpr):
    """The chunk of this program and its first query there; the chunk is -1 for a program too many."""
    number = tl.arange(0, SEQUENCES_PADDED)
    blocks = tl.cdiv(tl.load(count + number, mask=number < sequences, other=0).to(tl.int32), QUERIES)
    wanted = tl.sum(blocks, axis=0) - 1 - tl.program_id(1)
    before = tl.cumsum(blocks, axis=0) <= wanted
    sequence = tl.where(wanted < 0, -1, tl.sum(before.to(tl.int32), axis=0))
    return sequence, (wanted - tl.sum(tl.where(before, blocks, 0), axis=0)) * QUERIES


@triton.jit(do_not_specialize=["sequences", "table_stride"], do_not_specialize_on_alignment=["table"])
def _prefill_kernel(
    query, key, value, table, first, count, start, sinks, out,
    sequences, table_stride, page_stride, row_stride, head_stride, scale,
    GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr, HEAD_SIZE: tl.constexpr, PAGE_SIZE: tl.constexpr,
    QUERIES: tl.constexpr, BLOCK: tl.constexpr, SEQUENCES_PADDED: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """QUERIES tokens of one chunk, for the query heads of one key-value head; row r is head r % GROUP_PADDED."""
    head = tl.program_id(0)
    sequence, skipped = _find(count, sequences, QUERIES, SEQUENCES_PADDED)
    if sequence >= 0:
        row, columns = tl.arange(0, QUERIES * GROUP_PADDED), tl.arange(0, HEAD_SIZE)
        member, token = row % GROUP_PADDED, skipped + row // GROUP_PADDED
        length = tl.load(count + sequence).to(tl.int32)
        real = (token < length) & (member < GROUP)
        query_head = head * GROUP + member
        place = (tl.load(first + sequence).to(tl.int64) + token) * (tl.num_programs(0) * GROUP) + query_head
        tile = place[:, None] * HEAD_SIZE + columns[None, :]
        queries = tl.load(query + tile, mask=real[:, None], other=0.0)
        origin = tl.load(start + sequence).to(tl.int32)
        lowest, end = origin + skipped, origin + tl.minimum(skipped + QUERIES, length)
        positions = origin + token
        keys, values = key + head.to(tl.int64) * head_stride, value + head.to(tl.int64) * head_stride
        table_row = table + sequence.to(tl.int64) * table_stride
        peak = tl.full([QUERIES * GROUP_PADDED], NOTHING, tl.float32)
        total = tl.zeros([QUERIES * GROUP_PADDED], tl.float32)
        summed = tl.zeros([QUERIES * GROUP_PADDED, HEAD_SIZE], tl.float32)
        edge = 0
        if WINDOW > 0:
            edge = tl.maximum(lowest - WINDOW + 1, 0)
        else:
            edge = (lowest + 1) // BLOCK * BLOCK
            peak, total, summed = _walk(
                queries, positions, keys, values, table_row, 0, edge, peak, total, summed,
                page_stride, row_stride, scale, HEAD_SIZE, PAGE_SIZE, BLOCK, WINDOW, False,
            )  # fmt: skip
        peak, total, summed = _walk(
            queries, positions, keys, values, table_row, edge, end, peak, total, summed,
            page_stride, row_stride, scale, HEAD_SIZE, PAGE_SIZE, BLOCK, WINDOW, True,
        )  # fmt: skip
        sink = tl.load(sinks + query_head, mask=member < GROUP, other=0.0).to(tl.float32) * LOG2_E
        result = summed / (total + tl.exp2(sink - peak))[:, None]
        tl.store(out + tile, result, mask=real[:, None])


@triton.jit
def _walk(
    queries, positions, key, value, table_row, first, end, peak, total, summed, page_stride, row_stride, scale,
    HEAD_SIZE: tl.constexpr, PAGE_SIZE: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Take keys first … end − 1 into peak, total and weighted values; without EDGE every query sees all of them.

    A row that sees none of a block keeps a finite peak, so its weights are exp2(−∞) = 0. What lies after `end` may be
    NaN and is not read.
    """
    columns = tl.arange(0, HEAD_SIZE)
    pages = block_pages(table_row, first, end, BLOCK, PAGE_SIZE, WINDOW == 0)
    for begin in range(first, end, BLOCK):
        key_position = begin + tl.arange(0, BLOCK)
        spots = block_rows(pages, begin, page_stride, row_stride, BLOCK, PAGE_SIZE)[:, None] + columns[None, :]
        pages = block_pages(table_row, begin + BLOCK, end, BLOCK, PAGE_SIZE, WINDOW == 0)
        if EDGE:
            inside = (key_position < end)[:, None]
            keys, values = tl.load(key + spots, mask=inside, other=0.0), tl.load(value + spots, mask=inside, other=0.0)
        else:
            keys, values = tl.load(key + spots), tl.load(value + spots)
        scores = tl.dot(queries, tl.trans(keys.to(queries.dtype)), input_precision="ieee")
        if EDGE:
            seen = key_position[None, :] <= positions[:, None]
            if WINDOW > 0:
                seen = seen & (key_position[None, :] > positions[:, None] - WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1) * scale)
        weights = tl.exp2(scores * scale - higher[:, None])
        fade = tl.exp2(peak - higher)
        total = total * fade + tl.sum(weights, axis=1)
        summed = tl.dot(
            weights.to(queries.dtype), values.to(queries.dtype), summed * fade[:, None], input_precision="ieee"
        )
        peak = higher
    return peak, total, summed
