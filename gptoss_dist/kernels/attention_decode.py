# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
"""Attention of one new token a sequence over a paged cache, in Triton: the context is split over the chip.

After "Flash-Decoding" (https://pytorch.org/blog/flash-decoding): each split of a sequence's positions gives the peak of
its scores, the sum of their exponentials, and the values so weighted; a second kernel joins the splits and the head's
sink. A sliding layer has one split, and the sink is applied in the same kernel; so has a sequence that is short beside
the others.

How many programs there are follows from shapes alone, so a CUDA graph can be replayed with other positions and tables.
What each of them does follows from the positions: a split is the same number of blocks for all sequences, the fewest
with which all splits fit the programs, so that one long sequence among short ones is cut finely. Every program finds
its split by itself, from prefix sums over the sequences' blocks. None of these numbers is a constant of the kernels,
nor what Triton looks at in numbers and pointers, so batches of other sizes and tables of other widths need no compiling
(but the power of two above the sequences, from 64 on).

All query heads of a key-value head go through one product of tensor cores, padded to its 16 rows, and keys and values
are read once. Counted in machine code for sm_90 (heads of 64, bfloat16, blocks of 64 in pages of 16, 2 warps): 0.06
warp instructions for each byte of the cache. Multiply-adds on unpacked values would take 64 and 8 conversions for each
16 bytes of a thread, 0.14 for each byte, before the softmax.

Shape legend: S sequences, N blocks of a table, Q query heads, K key-value heads of this rank, D head size, P pages,
B tokens a page.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from gptoss_dist.kernels import dependent_launch
from gptoss_dist.kernels.attention_splits import MOST_SPLITS
from gptoss_dist.kernels.attention_tiles import LOG2_E, NOTHING, block_pages, block_rows, check_cache
from gptoss_dist.kernels.blocks import padded_to_power
from gptoss_dist.kernels.dependent_launch import let_next_start, wait_for_previous
from gptoss_dist.kernels.device_facts import processor_count

_TENSOR_CORE_ROWS = 16
_FEWEST_PADDED = 64
"""Sequences are looked at in powers of two from here on, each compiled once."""
_FEWEST_SPLITS = 32
"""Splits are joined by so many, or by as many as there can be: two kernels for tables of all widths."""
_JOINS_A_PROCESSOR = 16
"""Up to so many joining programs there is one for each query head, else one for each key-value head."""


@dataclass(frozen=True)
class DecodeSetting:
    """How the work is cut: `block` positions at a time, `stages` − 1 blocks under way, `warps` a program."""

    block: int = 64
    warps: int = 2
    stages: int = 4
    programs: int = 4
    """Splits of full layers for each processor of the chip."""


FULL = DecodeSetting()
SLIDING = DecodeSetting(block=128, warps=4, stages=2)
WIDE = DecodeSetting(block=32, warps=4, stages=2)
"""For float32, which has no tensor cores: full precision, not speed."""


def split_count(sequences: int, kv_heads: int, positions: int, processors: int, setting: DecodeSetting) -> int:
    """Splits to aim at, over all sequences, in a full layer; a table has room for `positions`."""
    blocks = sequences * -(-positions // setting.block)
    return max(1, min(processors * setting.programs // kv_heads, blocks, MOST_SPLITS))


def _padded_splits(kv_heads: int, positions: int, processors: int, setting: DecodeSetting) -> int:
    """A power of two that is no less than the splits of any sequence of `positions`."""
    if -(-positions // setting.block) <= _FEWEST_SPLITS:
        return _FEWEST_SPLITS
    most = split_count(MOST_SPLITS, kv_heads, positions, processors, setting)
    padded: int = padded_to_power(most)
    return max(_FEWEST_SPLITS, padded)


def decode_attention(
    query_SQD: torch.Tensor,
    key_PBKD: torch.Tensor,
    value_PBKD: torch.Tensor,
    table_SN: torch.Tensor,
    position_S: torch.Tensor,
    sinks_Q: torch.Tensor,
    window: int | None,
    out_SQD: torch.Tensor | None = None,
    setting: DecodeSetting | None = None,
) -> torch.Tensor:
    """[S, Q, D] in the dtype of the query: what the token at `position_S` of each sequence sees.

    It goes into `out_SQD`, contiguous, if that is given. Its own key and value are in their page already. A position
    of -1 is a padding row, which reads nothing and gives zeros. `table_SN` (int32): the page of each B positions;
    entries after a sequence's last page, or before a sliding layer's window, are not read. Keys and values may have any
    strides, as long as they have the same ones and D lies in one piece. ValueError for shapes and strides that the
    kernels cannot read.
    """
    check_cache(query_SQD, key_PBKD, value_PBKD, table_SN)
    sequences, query_heads, head_size = query_SQD.shape
    page_size, kv_heads = key_PBKD.shape[1:3]
    group = query_heads // kv_heads
    if setting is None:
        setting = WIDE if query_SQD.dtype == torch.float32 else FULL if window is None else SLIDING
    positions, processors = table_SN.shape[1] * page_size, processor_count(query_SQD.device)
    slots = split_count(sequences, kv_heads, positions, processors, setting)
    if out_SQD is None:
        out_SQD = torch.empty_like(query_SQD)
    if not sequences:
        return out_SQD
    partial, sums = out_SQD, out_SQD  # not looked at in a sliding layer
    if window is None:
        partial = query_SQD.new_empty((slots + sequences, query_heads, head_size), dtype=torch.float32)
        sums = query_SQD.new_empty((slots + sequences, query_heads, 2), dtype=torch.float32)
    padded = max(_FEWEST_PADDED, padded_to_power(sequences)) if window is None else _FEWEST_PADDED
    _decode_kernel[(kv_heads, sequences + (slots if window is None else 0))](
        query_SQD, key_PBKD, value_PBKD, table_SN, position_S, sinks_Q, out_SQD, partial, sums,
        sequences, slots, table_SN.stride(0), *key_PBKD.stride()[:3], head_size**-0.5 * LOG2_E.value,
        GROUP=group, ROWS=max(_TENSOR_CORE_ROWS, padded_to_power(group)), HEAD_SIZE=head_size,
        PAGE_SIZE=page_size, BLOCK=setting.block, SEQUENCES_PADDED=padded, WINDOW=window or 0,
        num_warps=setting.warps, num_stages=setting.stages,
        **dependent_launch.options(query_SQD.device),
    )  # fmt: skip
    if window is None:
        splits = _padded_splits(kv_heads, positions, processors, setting)
        together = 1 if sequences * query_heads <= _JOINS_A_PROCESSOR * processors else group
        _join_kernel[(query_heads // together, sequences)](
            partial, sums, position_S, sinks_Q, out_SQD, sequences, slots,
            TOGETHER=together, HEAD_SIZE=head_size, BLOCK=setting.block, SEQUENCES_PADDED=padded,
            SPLITS_PADDED=splits, num_warps=8 if splits > MOST_SPLITS // 2 else 4,
            **dependent_launch.options(query_SQD.device),
        )  # fmt: skip
    return out_SQD


@triton.jit
def _cut(position, sequences, slots, BLOCK: tl.constexpr, SEQUENCES_PADDED: tl.constexpr):
    """Splits of each sequence, and positions of a split: whole blocks, few enough for `slots` + `sequences` splits."""
    number = tl.arange(0, SEQUENCES_PADDED)
    keys = tl.load(position + number, mask=number < sequences, other=-1).to(tl.int32) + 1
    blocks = tl.cdiv(keys, BLOCK)
    share = tl.maximum(tl.cdiv(tl.sum(blocks, axis=0), slots), 1)
    return number, tl.cdiv(blocks, share), share * BLOCK


@triton.jit(do_not_specialize=["sequences", "slots", "table_stride"], do_not_specialize_on_alignment=["table"])
def _decode_kernel(
    query, key, value, table, position, sinks, out, partial, sums,
    sequences, slots, table_stride, page_stride, row_stride, head_stride, scale,
    GROUP: tl.constexpr, ROWS: tl.constexpr, HEAD_SIZE: tl.constexpr, PAGE_SIZE: tl.constexpr, BLOCK: tl.constexpr,
    SEQUENCES_PADDED: tl.constexpr, WINDOW: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One split of one sequence for the query heads of one key-value head; programs too many do nothing."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    head, slot = tl.program_id(0), tl.program_id(1)
    if WINDOW > 0:
        sequence, splits, used = slot, 1, True
        end = tl.load(position + sequence).to(tl.int32) + 1
        first = tl.maximum(end - WINDOW, 0)
    else:
        number, counts, share = _cut(position, sequences, slots, BLOCK, SEQUENCES_PADDED)
        before = tl.cumsum(counts, axis=0) <= slot
        sequence = tl.sum(before.to(tl.int32), axis=0)
        splits = tl.sum(tl.where(number == sequence, counts, 0), axis=0)
        first = (slot - tl.sum(tl.where(before, counts, 0), axis=0)) * share
        used = sequence < SEQUENCES_PADDED
        end = tl.minimum(first + share, tl.load(position + sequence, mask=used, other=-1).to(tl.int32) + 1)
    if used:
        rows, columns = tl.arange(0, ROWS), tl.arange(0, HEAD_SIZE)
        in_group = rows < GROUP
        query_head, heads = head * GROUP + rows, tl.num_programs(0) * GROUP
        tile = (sequence.to(tl.int64) * heads + query_head)[:, None] * HEAD_SIZE + columns[None, :]
        queries = tl.load(query + tile, mask=in_group[:, None], other=0.0)
        peak, total, summed = _attend(
            queries, key + head.to(tl.int64) * head_stride, value + head.to(tl.int64) * head_stride,
            table + sequence.to(tl.int64) * table_stride, first, end, page_stride, row_stride, scale,
            ROWS, HEAD_SIZE, PAGE_SIZE, BLOCK, WINDOW == 0,
        )  # fmt: skip
        if splits == 1:
            sink = tl.load(sinks + query_head, mask=in_group, other=0.0).to(tl.float32) * LOG2_E
            result = summed / (total + tl.exp2(sink - peak))[:, None]
            tl.store(out + tile, result, mask=in_group[:, None])
        else:
            spot = slot * heads + query_head
            tl.store(partial + spot[:, None] * HEAD_SIZE + columns[None, :], summed, mask=in_group[:, None])
            tl.store(sums + 2 * spot, peak, mask=in_group)
            tl.store(sums + 2 * spot + 1, total, mask=in_group)


@triton.jit
def _attend(
    queries, key, value, table_row, first, end, page_stride, row_stride, scale,
    ROWS: tl.constexpr, HEAD_SIZE: tl.constexpr, PAGE_SIZE: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Peak of the scores of positions first … end − 1 in base 2, sum of their exponentials, values weighted by those.

    Places of keys and values that hold no token of the sequence are not read: what lies there may be NaN.
    """
    columns = tl.arange(0, HEAD_SIZE)
    peak = tl.full([ROWS], NOTHING, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    summed = tl.zeros([ROWS, HEAD_SIZE], tl.float32)
    pages = block_pages(table_row, first, end, BLOCK, PAGE_SIZE, ALIGNED)
    for start in range(first, end, BLOCK):
        inside = start + tl.arange(0, BLOCK) < end
        spots = block_rows(pages, start, page_stride, row_stride, BLOCK, PAGE_SIZE)[:, None] + columns[None, :]
        pages = block_pages(table_row, start + BLOCK, end, BLOCK, PAGE_SIZE, ALIGNED)
        keys = tl.load(key + spots, mask=inside[:, None], other=0.0).to(queries.dtype)
        values = tl.load(value + spots, mask=inside[:, None], other=0.0).to(queries.dtype)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
        scores = tl.where(inside[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1) * scale)
        weights = tl.exp2(scores * scale - higher[:, None])
        fade = tl.exp2(peak - higher)
        total = total * fade + tl.sum(weights, axis=1)
        summed = tl.dot(weights.to(queries.dtype), values, summed * fade[:, None], input_precision="ieee")
        peak = higher
    return peak, total, summed


@triton.jit(do_not_specialize=["sequences", "slots"])
def _join_kernel(
    partial, sums, position, sinks, out, sequences, slots,
    TOGETHER: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK: tl.constexpr, SEQUENCES_PADDED: tl.constexpr,
    SPLITS_PADDED: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """out = what the splits found and the sink, for TOGETHER query heads of a sequence; zeros for a padding row.

    A sequence of one split is finished already.
    """
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    sequence = tl.program_id(1)
    heads = tl.num_programs(0) * TOGETHER
    number, counts, _ = _cut(position, sequences, slots, BLOCK, SEQUENCES_PADDED)
    splits = tl.sum(tl.where(number == sequence, counts, 0), axis=0)
    if splits != 1:
        begin = tl.sum(tl.where(number < sequence, counts, 0), axis=0)
        split, columns = tl.arange(0, SPLITS_PADDED), tl.arange(0, HEAD_SIZE)
        used = split < splits
        for head in range(tl.program_id(0) * TOGETHER, tl.program_id(0) * TOGETHER + TOGETHER):
            spot = (begin + split) * heads + head
            peaks = tl.load(sums + 2 * spot, mask=used, other=NOTHING)
            totals = tl.load(sums + 2 * spot + 1, mask=used, other=0.0)
            found = tl.load(partial + spot[:, None] * HEAD_SIZE + columns[None, :], mask=used[:, None], other=0.0)
            peak = tl.max(peaks, axis=0)
            factors = tl.exp2(peaks - peak)
            sink = tl.load(sinks + head).to(tl.float32) * LOG2_E
            total = tl.sum(totals * factors, axis=0) + tl.exp2(sink - peak)
            result = tl.sum(found * factors[:, None], axis=0) / total
            tl.store(out + (sequence.to(tl.int64) * heads + head) * HEAD_SIZE + columns, result)
