"""Routes grouped by expert, on the device: a list of tiles of at most N routes of one expert, and the routes in order.

Nothing is read back: shapes depend on the number of routes and experts only. A route's place is the number of routes
before it in (expert, route) order. Few routes: one launch, which compares all pairs. Many: one counts experts in blocks
of routes, the next adds up what lies before a block and compares only within it. Routes of other ranks are in no tile.

Shape legend: P routes, S tiles (an upper bound), E experts here.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from gptoss_dist.kernels.blocks import blocks_of, padded_to_power

_ROUTES_A_PROGRAM = 64
_ROUTES_A_STEP = 32
_ROUTES_COMPARED = 512
"""Up to here all pairs are compared: loops of a few rounds, where a round takes as long as a load from the cache."""
_ROUTES_A_BLOCK = 128
_BLOCKS_A_STEP = 64


@dataclass(frozen=True)
class Routes:
    """Which routes each program multiplies; int32 throughout."""

    order_P: torch.Tensor
    """Routes (token · K + slot), those of one expert together, in rising order within it; its end may hold anything if
    there are routes of other ranks."""
    expert_S: torch.Tensor
    """Expert of each tile, -1 for tiles that are not needed."""
    first_S: torch.Tensor
    """Where in `order_P` a tile's routes begin."""
    count_S: torch.Tensor
    """How many routes it has, 1 to N."""


def most_tiles(routes: int, experts: int, columns: int) -> int:
    """Tiles of `columns` routes that `routes` routes over `experts` experts can need."""
    return min(routes, min(routes, experts) + routes // columns)


def group_routes(index_P: torch.Tensor, experts: int, columns: int, unit: int | None = None) -> Routes:
    """Group routes with expert ids `index_P` (int32 or int64; ids outside [0, experts) are other ranks').

    As few tiles as `columns` allows; an expert's are of equal size, rounded up to a multiple of `unit` (default:
    `columns`, which leaves the rest to the last), and the last has what remains.
    """
    routes = index_P.numel()
    tiles = most_tiles(routes, experts, columns)
    order_P = torch.empty(routes, dtype=torch.int32, device=index_P.device)
    apart = -(-tiles // 4) * 4  # each begins at a multiple of 16 bytes: else the kernels are compiled once more
    expert_S, first_S, count_S = torch.empty(3, apart, dtype=torch.int32, device=index_P.device)[:, :tiles].unbind()
    padded = max(16, padded_to_power(experts))
    if routes <= _ROUTES_COMPARED:
        _group_kernel[(blocks_of(routes, _ROUTES_A_PROGRAM) + 1,)](
            index_P,
            order_P,
            expert_S,
            first_S,
            count_S,
            routes,
            experts,
            tiles,
            COLUMNS=columns,
            UNIT=unit or columns,
            EXPERTS=padded,
            BLOCK=_ROUTES_A_PROGRAM,
            STEP=_ROUTES_A_STEP,
        )
        return Routes(order_P, expert_S, first_S, count_S)
    blocks = blocks_of(routes, _ROUTES_A_BLOCK)
    counts = torch.empty(blocks, padded, dtype=torch.int32, device=index_P.device)
    _count_kernel[(blocks,)](index_P, counts, routes, experts, EXPERTS=padded, BLOCK=_ROUTES_A_BLOCK, num_warps=8)
    _place_kernel[(blocks + 1,)](
        index_P,
        counts,
        order_P,
        expert_S,
        first_S,
        count_S,
        routes,
        experts,
        tiles,
        COLUMNS=columns,
        UNIT=unit or columns,
        EXPERTS=padded,
        BLOCK=_ROUTES_A_BLOCK,
        STEP=_BLOCKS_A_STEP,
        num_warps=8,
    )
    return Routes(order_P, expert_S, first_S, count_S)


@triton.jit
def _keys(index, route, routes, experts):
    """Expert ids of routes; `experts` for those of other ranks, more for what is no route."""
    key = tl.load(index + route, mask=route < routes, other=0).to(tl.int32)
    key = tl.where((key >= 0) & (key < experts), key, experts)
    return tl.where(route < routes, key, experts + 1)


@triton.jit(do_not_specialize=["routes", "tiles"])
def _group_kernel(
    index, order, tile_expert, tile_first, tile_count, routes, experts, tiles,
    COLUMNS: tl.constexpr, UNIT: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Program 0 writes the tiles, each other one the places of BLOCK routes."""
    if tl.program_id(0) == 0:
        _write_tiles(
            index, tile_expert, tile_first, tile_count, routes, experts, tiles, COLUMNS, UNIT, EXPERTS, STEP
        )  # fmt: skip
    else:
        route = (tl.program_id(0) - 1) * BLOCK + tl.arange(0, BLOCK)
        key = _keys(index, route, routes, experts)
        place = tl.zeros([BLOCK], dtype=tl.int32)
        first = 0
        while first < routes:
            other = first + tl.arange(0, STEP)
            other_key = _keys(index, other, routes, experts)
            same_before = (other_key[None, :] == key[:, None]) & (other[None, :] < route[:, None])
            place += tl.sum(((other_key[None, :] < key[:, None]) | same_before).to(tl.int32), axis=1)
            first += STEP
        tl.store(order + place, route, mask=route < routes)


@triton.jit
def _write_tiles(
    index, tile_expert, tile_first, tile_count, routes, experts, tiles,
    COLUMNS: tl.constexpr, UNIT: tl.constexpr, EXPERTS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    expert = tl.arange(0, EXPERTS)
    count = tl.zeros([EXPERTS], dtype=tl.int32)
    first = 0
    while first < routes:
        key = _keys(index, first + tl.arange(0, STEP), routes, experts)
        count += tl.sum((key[None, :] == expert[:, None]).to(tl.int32), axis=1)
        first += STEP
    count = tl.where(expert < experts, count, 0)
    _cut(count, tile_expert, tile_first, tile_count, tiles, COLUMNS, UNIT, EXPERTS)


@triton.jit
def _cut(
    count, tile_expert, tile_first, tile_count, tiles, COLUMNS: tl.constexpr, UNIT: tl.constexpr, EXPERTS: tl.constexpr
):  # fmt: skip
    """The tiles of each expert's `count` routes, expert by expert; then the unused."""
    expert = tl.arange(0, EXPERTS)
    needed = (count + COLUMNS - 1) // COLUMNS
    equal = (count + needed - 1) // tl.maximum(needed, 1)
    columns = (equal + UNIT - 1) // UNIT * UNIT
    first_tile = tl.cumsum(needed, axis=0) - needed
    first_route = tl.cumsum(count, axis=0) - count
    most = tl.max(needed, axis=0)
    nth = 0
    while nth < most:
        inside = nth < needed
        tl.store(tile_expert + first_tile + nth, expert, mask=inside)
        tl.store(tile_first + first_tile + nth, first_route + nth * columns, mask=inside)
        tl.store(tile_count + first_tile + nth, tl.minimum(count - nth * columns, columns), mask=inside)
        nth += 1
    unused = tl.sum(needed, axis=0)
    while unused < tiles:
        tl.store(tile_expert + unused + expert, -1, mask=unused + expert < tiles)
        unused += EXPERTS


@triton.jit(do_not_specialize=["routes"])
def _count_kernel(index, counts, routes, experts, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    """counts[block, expert]: routes of BLOCK consecutive ones that go to each expert here."""
    route = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key, expert = _keys(index, route, routes, experts), tl.arange(0, EXPERTS)
    here = (key[None, :] == expert[:, None]) & (expert < experts)[:, None]
    tl.store(counts + tl.program_id(0) * EXPERTS + expert, tl.sum(here.to(tl.int32), axis=1))


@triton.jit(do_not_specialize=["routes", "tiles"])
def _place_kernel(
    index, counts, order, tile_expert, tile_first, tile_count, routes, experts, tiles,
    COLUMNS: tl.constexpr, UNIT: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """From `_count_kernel`: program 0 writes the tiles, each other one the places of its BLOCK routes."""
    block, expert = tl.program_id(0) - 1, tl.arange(0, EXPERTS)
    count, before = tl.zeros([EXPERTS], dtype=tl.int32), tl.zeros([EXPERTS], dtype=tl.int32)
    blocks = tl.cdiv(routes, BLOCK)
    first = 0
    while first < blocks:
        other = first + tl.arange(0, STEP)
        found = tl.load(counts + other[:, None] * EXPERTS + expert[None, :], mask=(other < blocks)[:, None], other=0)
        count += tl.sum(found, axis=0)
        before += tl.sum(tl.where((other < block)[:, None], found, 0), axis=0)
        first += STEP
    if block < 0:
        _cut(count, tile_expert, tile_first, tile_count, tiles, COLUMNS, UNIT, EXPERTS)
    else:
        before += tl.cumsum(count, axis=0) - count
        within = tl.arange(0, BLOCK)
        route = block * BLOCK + within
        key = _keys(index, route, routes, experts)
        place = tl.sum(tl.where(key[:, None] == expert[None, :], before[None, :], 0), axis=1)
        other_key = _keys(index, block * BLOCK + within, routes, experts)
        same_before = (other_key[None, :] == key[:, None]) & (within[None, :] < within[:, None])
        place += tl.sum(same_before.to(tl.int32), axis=1)
        tl.store(order + place, route, mask=key < experts)
