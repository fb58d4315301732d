"""The Triton kernels of the packed experts: gate_up with clamped SwiGLU, and down with router weights.

A program takes a tile of weight rows of one expert and up to COLUMNS of that expert's routes. Weights are the rows (M)
of the tensor core product, routes its columns (N): unpacked once, a weight serves every route. A program reads its
rows over all contracted columns, so nothing is left to add up between programs; each route's row of `down` is written
weighted, and `norm_triton` adds a token's rows in the order of its routes: the same bits on every rank and run.

Two shapes of product. BATCHED (few routes): groups of 32 columns are the batch of a three-dimensional `tl.dot`, which
deals them over the warps; each warp reads its own columns of few rows. Otherwise (many routes): an ordinary `tl.dot` of
[ROWS, columns] with the groups' columns in the order of `mxfp4_unpack.by_twos`, activations too.

A ladder of widths. A tile of the list multiplies as many columns as the narrowest of NARROWER and COLUMNS that holds
its routes, so that an expert of 300 routes takes 256 + 64 columns and not 512.

Shape legend: T tokens, K experts per token, P = T·K routes, E experts here, H hidden, I intermediate columns here,
N = COLUMNS, or a narrower width.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False

from __future__ import annotations

import triton
import triton.language as tl

from gptoss_dist.kernels.mxfp4_unpack import (
    by_fours,
    by_twos,
    four_scales,
    paired_place,
    scale_values,
    times_scale,
    values_of,
    values_of_rows,
)

LIFT = 2.0**100
"""Late scales in bfloat16: codes enter the product times 2^-126, so activations enter times this; both stay exact."""
_UNLIFT = tl.constexpr(2.0**26)
_HALF_LIFT = tl.constexpr(2.0**14)


@triton.jit
def _own_routes(index, routes, experts, COLUMNS: tl.constexpr, ROUTES: tl.constexpr):
    """Without a list: program (slot, …) stands for route `slot`, and takes its expert's routes if it is the first.

    Returns (expert or -1, routes [N], which of them are real [N]); of more than N routes, every N-th is a first.
    """
    slot = tl.program_id(0)
    route = tl.arange(0, ROUTES)
    key = tl.load(index + route, mask=route < routes, other=-1).to(tl.int32)
    own = tl.load(index + slot).to(tl.int32)
    same = ((key == own) & (route < routes)).to(tl.int32)
    rank = tl.cumsum(same, axis=0) - 1
    before = tl.sum(same * (route < slot).to(tl.int32), axis=0)
    first = (before % COLUMNS == 0) & (own >= 0) & (own < experts)
    chosen = (same > 0)[None, :] & (rank[None, :] == before + tl.arange(0, COLUMNS)[:, None])
    route_N = tl.sum(tl.where(chosen, route[None, :], 0), axis=1)
    return tl.where(first, own, -1), route_N, tl.sum(chosen.to(tl.int32), axis=1) > 0


@triton.jit
def _listed_tile(tile_expert, tile_first, tile_count, tile):
    """From the list of `experts_routes`: (expert or -1, where its routes begin, how many there are)."""
    expert = tl.load(tile_expert + tile)
    # What an unused tile holds besides its -1 was never written.
    count = tl.where(expert >= 0, tl.load(tile_count + tile), 0)
    return expert, tl.where(expert >= 0, tl.load(tile_first + tile), 0), count


@triton.jit
def _listed_routes(order, first, count, COLUMNS: tl.constexpr):
    """(routes [N], which of them are real [N]) of a tile."""
    column = tl.arange(0, COLUMNS)
    route_N = tl.load(order + first + column, mask=column < count, other=0)
    return route_N, column < count


@triton.jit
def _products(
    words, scales, row_tile, row, activations, start_N, real_N, ROW_COUNT: tl.constexpr, GROUPS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, dtype: tl.constexpr, BATCHED: tl.constexpr,
    LATE: tl.constexpr,
):  # fmt: skip
    """Rows [ROWS] of one expert times activations [N], which begin at `start_N`: [ROWS, N], float32."""
    step = tl.arange(0, STEP)
    if BATCHED:
        # Programs begin at multiples of ROWS, which are whole tiles of scales; the last may reach past the rows.
        tile = tl.minimum(row_tile * (ROWS // 32) + tl.arange(0, ROWS // 32), ROW_COUNT // 32 - 1)
        scale_word = scales.to(tl.pointer_type(tl.int32), bitcast=True)
        scale_at = scale_word + tile[None, :, None] * (GROUPS * 8) + tl.arange(0, 8)[None, None, :]
        scale_at += step[:, None, None] * 8
        total = tl.zeros([STEP, ROWS, COLUMNS], dtype=tl.float32)
        next_word = tl.load(scale_at, mask=(step < GROUPS)[:, None, None], other=0)
        for first in range(0, GROUPS, STEP):
            group = first + step
            inside = (group < GROUPS)[:, None, None]
            word_at = words + row[None, :, None] * (GROUPS * 4) + group[:, None, None] * 4
            word = tl.load(word_at + tl.arange(0, 4)[None, None, :], mask=inside, other=0).to(tl.uint32, bitcast=True)
            column = group[:, None, None] * 32 + tl.arange(0, 32)[None, :, None]
            active = tl.load(
                activations + start_N[None, None, :] + column, mask=inside & real_N[None, None, :], other=0
            )
            values = values_of(word, STEP, ROWS, dtype)
            if LATE:
                # No operand of the product, so Triton does not load it ahead by itself.
                scale = four_scales(next_word, STEP, ROWS)
                beyond = (group + STEP < GROUPS)[:, None, None]
                next_word = tl.load(scale_at + (first + STEP) * 8, mask=beyond, other=0)
                part = tl.dot(by_fours(values.to(dtype), STEP, ROWS), active, input_precision="ieee")
                total += part * scale_values(scale)[:, :, None]
            else:
                scale = four_scales(tl.load(scale_at + first * 8, mask=inside, other=0), STEP, ROWS)
                weights = by_fours(times_scale(values, scale, dtype), STEP, ROWS)
                total = tl.dot(weights, active, total, input_precision="ieee")
        result = tl.sum(total, axis=0)
        if LATE:
            if dtype == tl.bfloat16:
                result *= _UNLIFT
            else:
                result *= _HALF_LIFT
    else:
        tile = row // 32 * (GROUPS * 32) + row % 8 * 4 + row // 8 % 4
        scale_at = scales + tile[:, None] + step[None, :] * 32
        word_at = words + row[:, None] * (GROUPS * 4) + tl.arange(0, STEP * 4)[None, :]
        total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
        # Two names for one sum, begun differently so that they stay two, make Triton wait for a product before the
        # next step. Left to run on, its weights would be overwritten in their registers while they are multiplied:
        # neither Triton 3.6 nor its ptxas prevents that (NOTES.md). The second name costs no instruction.
        result = tl.full([ROWS, COLUMNS], 1.0, dtype=tl.float32)
        next_scale = tl.load(scale_at, mask=(step < GROUPS)[None, :], other=0)
        for first in range(0, GROUPS, STEP):
            scale = next_scale
            beyond = first + STEP + step < GROUPS
            next_scale = tl.load(scale_at + (first + STEP) * 32, mask=beyond[None, :], other=0)
            in_row = (first * 4 + tl.arange(0, STEP * 4) < GROUPS * 4)[None, :]
            word = tl.load(word_at + first * 4, mask=in_row, other=0).to(tl.uint32, bitcast=True)
            column = first * 32 + tl.arange(0, STEP * 32)
            inside = (column < GROUPS * 32)[:, None] & real_N[None, :]
            active = tl.load(activations + start_N[None, :] + column[:, None], mask=inside, other=0)
            values = values_of_rows(tl.reshape(word, (ROWS, STEP, 4)), ROWS, STEP, dtype)
            weights = by_twos(times_scale(values, scale, dtype), ROWS, STEP)
            total = tl.dot(weights, active, total, input_precision="ieee")
            result = total
    return result


@triton.jit
def _gate_up_tile(
    hidden, words, scales, bias, inner, expert, row_tile, route_N, real_N, alpha, limit, lift, TOP_K: tl.constexpr,
    ROW_COUNT: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
    BATCHED: tl.constexpr,
):  # fmt: skip
    """One tile of `gate_up_kernel`."""
    rows = row_tile * ROWS + tl.arange(0, ROWS)
    row = tl.minimum(rows, ROW_COUNT - 1)
    start_N = (route_N // TOP_K).to(tl.int64) * (GROUPS * 32)
    wide = expert.to(tl.int64) * ROW_COUNT
    gate_up = _products(
        words + wide * (GROUPS * 4), scales + wide * GROUPS, row_tile, row, hidden, start_N, real_N,
        ROW_COUNT, GROUPS, ROWS, COLUMNS, STEP, hidden.dtype.element_ty, BATCHED, False,
    )  # fmt: skip
    gate_up += tl.load(bias + wide + row).to(tl.float32)[:, None]
    pairs = tl.permute(tl.reshape(gate_up, (ROWS // 2, 2, COLUMNS)), (0, 2, 1))
    gate, up = tl.split(pairs)
    gate = tl.minimum(gate, limit, propagate_nan=tl.PropagateNan.ALL)
    up = tl.maximum(up, -limit, propagate_nan=tl.PropagateNan.ALL)
    up = tl.minimum(up, limit, propagate_nan=tl.PropagateNan.ALL)
    value = (up + 1.0) * gate * tl.sigmoid(gate * alpha) * lift
    column = row_tile * (ROWS // 2) + tl.arange(0, ROWS // 2)
    place = column
    if not BATCHED:
        place = paired_place(column)
    target = inner + route_N.to(tl.int64)[None, :] * (ROW_COUNT // 2) + place[:, None]
    inside = (column < ROW_COUNT // 2)[:, None] & real_N[None, :]
    tl.store(target, value.to(inner.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["routes"])
def gate_up_kernel(
    hidden, index, order, tile_expert, tile_first, tile_count, words, scales, bias, inner, routes, experts, alpha,
    limit, lift, TOP_K: tl.constexpr, ROW_COUNT: tl.constexpr, GROUPS: tl.constexpr, LISTED: tl.constexpr,
    ROUTES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, BATCHED: tl.constexpr,
    NARROWER: tl.constexpr, ROWS_FIRST: tl.constexpr,
):  # fmt: skip
    """inner[route] = lift · clamped SwiGLU of its expert's gate and up rows; others' routes are left as they are."""
    if LISTED:
        expert, first, count = _listed_tile(tile_expert, tile_first, tile_count, tl.program_id(ROWS_FIRST))
        row_tile = tl.program_id(1 - ROWS_FIRST)
        below = 0
        if expert >= 0:
            for rung in tl.static_range(len(NARROWER)):
                if (count > below) & (count <= NARROWER[rung]):
                    route_N, real_N = _listed_routes(order, first, count, NARROWER[rung])
                    _gate_up_tile(
                        hidden, words, scales, bias, inner, expert, row_tile, route_N, real_N, alpha, limit, lift,
                        TOP_K, ROW_COUNT, GROUPS, ROWS, NARROWER[rung], STEP, BATCHED,
                    )  # fmt: skip
                below = NARROWER[rung]
            if count > below:
                route_N, real_N = _listed_routes(order, first, count, COLUMNS)
                _gate_up_tile(
                    hidden, words, scales, bias, inner, expert, row_tile, route_N, real_N, alpha, limit, lift,
                    TOP_K, ROW_COUNT, GROUPS, ROWS, COLUMNS, STEP, BATCHED,
                )  # fmt: skip
    else:
        expert, route_N, real_N = _own_routes(index, routes, experts, COLUMNS, ROUTES)
        if expert >= 0:
            _gate_up_tile(
                hidden, words, scales, bias, inner, expert, tl.program_id(1), route_N, real_N, alpha, limit, lift,
                TOP_K, ROW_COUNT, GROUPS, ROWS, COLUMNS, STEP, BATCHED,
            )  # fmt: skip


@triton.jit
def _down_tile(
    inner, words, scales, bias, weight, out, expert, row_tile, route_N, real_N, ROW_COUNT: tl.constexpr,
    GROUPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, BATCHED: tl.constexpr,
    LATE: tl.constexpr,
):  # fmt: skip
    """One tile of `down_kernel`."""
    rows = row_tile * ROWS + tl.arange(0, ROWS)
    row = tl.minimum(rows, ROW_COUNT - 1)
    start_N = route_N.to(tl.int64) * (GROUPS * 32)
    wide = expert.to(tl.int64) * ROW_COUNT
    value = _products(
        words + wide * (GROUPS * 4), scales + wide * GROUPS, row_tile, row, inner, start_N, real_N,
        ROW_COUNT, GROUPS, ROWS, COLUMNS, STEP, inner.dtype.element_ty, BATCHED, LATE,
    )  # fmt: skip
    value += tl.load(bias + wide + row).to(tl.float32)[:, None]
    value *= tl.load(weight + route_N, mask=real_N, other=0.0).to(tl.float32)[None, :]
    target = out + route_N.to(tl.int64)[None, :] * ROW_COUNT + rows[:, None]
    tl.store(target, value, mask=(rows < ROW_COUNT)[:, None] & real_N[None, :])


@triton.jit(do_not_specialize=["routes"])
def down_kernel(
    inner, index, order, tile_expert, tile_first, tile_count, words, scales, bias, weight, out, routes, experts,
    ROW_COUNT: tl.constexpr, GROUPS: tl.constexpr, LISTED: tl.constexpr, ROUTES: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, STEP: tl.constexpr, BATCHED: tl.constexpr, LATE: tl.constexpr, NARROWER: tl.constexpr,
    ROWS_FIRST: tl.constexpr,
):  # fmt: skip
    """out[route] = weight · (down rows · inner[route] + bias); others' routes are left as they are."""
    if LISTED:
        expert, first, count = _listed_tile(tile_expert, tile_first, tile_count, tl.program_id(ROWS_FIRST))
        row_tile = tl.program_id(1 - ROWS_FIRST)
        below = 0
        if expert >= 0:
            for rung in tl.static_range(len(NARROWER)):
                if (count > below) & (count <= NARROWER[rung]):
                    route_N, real_N = _listed_routes(order, first, count, NARROWER[rung])
                    _down_tile(
                        inner, words, scales, bias, weight, out, expert, row_tile, route_N, real_N,
                        ROW_COUNT, GROUPS, ROWS, NARROWER[rung], STEP, BATCHED, LATE,
                    )  # fmt: skip
                below = NARROWER[rung]
            if count > below:
                route_N, real_N = _listed_routes(order, first, count, COLUMNS)
                _down_tile(
                    inner, words, scales, bias, weight, out, expert, row_tile, route_N, real_N,
                    ROW_COUNT, GROUPS, ROWS, COLUMNS, STEP, BATCHED, LATE,
                )  # fmt: skip
    else:
        expert, route_N, real_N = _own_routes(index, routes, experts, COLUMNS, ROUTES)
        if expert >= 0:
            _down_tile(
                inner, words, scales, bias, weight, out, expert, tl.program_id(1), route_N, real_N,
                ROW_COUNT, GROUPS, ROWS, COLUMNS, STEP, BATCHED, LATE,
            )  # fmt: skip
