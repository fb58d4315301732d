"""Packed experts in Triton, unpacked in registers: no download, any GPU that Triton knows.

Three launches (gate_up, down, ordered sum) up to a few tokens, with a list of routes before them for more, and for many
tokens a copy of the activations in another order. Nothing is read back from the device and every grid depends on shapes
only, so that a call can be captured in a CUDA graph. `install` lays the weights out once (`mxfp4_layout`), in place.
Block shapes: `experts_tiles`. The reference is `experts_reference`. NOTES.md beside this file holds what was tried.

Shape legend: T tokens, K experts per token, P = T·K routes, E experts here, H hidden, I intermediate columns here.
"""

from __future__ import annotations

from typing import Any

import torch

from gptoss_dist.errors import KernelError
from gptoss_dist.kernels import norm_triton
from gptoss_dist.kernels.blocks import blocks_of
from gptoss_dist.kernels.device_facts import capability
from gptoss_dist.kernels.experts_kernels import LIFT, down_kernel, gate_up_kernel
from gptoss_dist.kernels.experts_routes import Routes, group_routes
from gptoss_dist.kernels.experts_tiles import ROUNDED_ABOVE, Tile, Tiles, choose
from gptoss_dist.kernels.mxfp4_layout import interleave_, paired
from gptoss_dist.kernels.packed import PackedExperts

_ROUTES_WITHOUT_LIST = 32
"""Up to here every program finds its routes itself, which saves a launch; looked at as so many, to compile once."""
_MIN_CAPABILITY = (8, 0)
_HOPPER = 9


def unavailable(device: torch.device) -> str | None:
    """Why the kernels cannot run on `device`, or None."""
    if device.type != "cuda":
        return "the built-in Triton kernels need a GPU"
    if capability(device) < _MIN_CAPABILITY:
        return (
            f"the built-in Triton kernels need compute capability 8.0, and this is {torch.cuda.get_device_name(device)}"
        )
    return None


def install(module: Any) -> None:
    """Lay the weights of a `PackedGptOssExperts` out for the kernels, in place, and make them its kernel."""
    if not module.interleaved:
        with torch.no_grad():
            interleave_(module.gate_up_proj_blocks.data, module.gate_up_proj_scales.data)
            interleave_(module.down_proj_blocks.data, module.down_proj_scales.data)
        module.interleaved = True
    module.kernel, module.rows_kernel = experts_forward, expert_rows


def experts_forward(
    hidden_TH: torch.Tensor,
    index_TK: torch.Tensor,
    weight_TK: torch.Tensor,
    packed: PackedExperts,
    tiles: Tiles | None = None,
) -> torch.Tensor:
    """Σ over a token's routes of weight × expert(hidden), `[T, H]` in the dtype of `hidden_TH`.

    `hidden_TH` is bfloat16, float16 or float32; `index_TK` int32 or int64, ids outside [0, E) belong to other ranks
    and add nothing; `weight_TK` any float. Products are summed in float32; the inner activations are rounded to the
    dtype of `hidden_TH`. `tiles`: other block shapes than those of `experts_tiles`. Raises KernelError for weights
    that `install` did not lay out.
    """
    rows_PH = expert_rows(hidden_TH, index_TK, weight_TK, packed, tiles)
    return norm_triton.sum_routes(rows_PH, index_TK.reshape(-1).contiguous(), hidden_TH, packed.expert_count)


def expert_rows(
    hidden_TH: torch.Tensor,
    index_TK: torch.Tensor,
    weight_TK: torch.Tensor,
    packed: PackedExperts,
    tiles: Tiles | None = None,
) -> torch.Tensor:
    """`experts_forward` before the sum: row t·K + k is weight × expert(hidden) of token t's route k, `[P, H]`.

    Float32, or for more than ROUNDED_ABOVE tokens the format of the activations. Rows of other ranks' routes hold
    anything.
    """
    if not packed.interleaved:
        raise KernelError(
            "The built-in expert kernels multiply weights in their own order: call experts_triton.install on the "
            "module first, or use kernels.experts=reference."
        )
    tokens = index_TK.shape[0]
    if not tokens or not packed.expert_count:
        return hidden_TH.new_empty(index_TK.numel(), packed.down_bias.shape[1], dtype=torch.float32)
    tiles = tiles or choose(tokens, hidden_TH.dtype == torch.float32, _is_hopper(hidden_TH.device))
    index_P, weight_P = index_TK.reshape(-1).contiguous(), weight_TK.reshape(-1).contiguous()
    with torch.cuda.device_of(hidden_TH):  # Triton launches on the current device
        routes = None
        if index_P.numel() > _ROUTES_WITHOUT_LIST:
            routes = group_routes(index_P, packed.expert_count, tiles.gate_up.columns)
        inner_PI = _gate_up(hidden_TH.contiguous(), index_P, routes, packed, tiles)
        dtype = torch.float32 if tokens <= ROUNDED_ABOVE else hidden_TH.dtype
        return _down(inner_PI, index_P, weight_P, routes, packed, tiles.down, dtype)


def _is_hopper(device: torch.device) -> bool:
    """Whether products may be as large as `wgmma` allows; the interpreter's may."""
    return device.type != "cuda" or capability(device)[0] == _HOPPER


def _gate_up(
    hidden_TH: torch.Tensor, index_P: torch.Tensor, routes: Routes | None, packed: PackedExperts, tiles: Tiles
) -> torch.Tensor:
    """Inner activations `[P, I]`, for `batched` tiles in their own order, otherwise in that of `by_twos`."""
    tile, (tokens, hidden_size) = tiles.gate_up, hidden_TH.shape
    rows = packed.gate_up_bias[0].numel()
    if not tile.batched:
        hidden_TH = paired(hidden_TH)
    inner_PI = torch.empty(index_P.numel(), rows // 2, dtype=hidden_TH.dtype, device=hidden_TH.device)
    gate_up_kernel[_grid(index_P, routes, rows, tile)](
        hidden_TH,
        *_routes_arguments(index_P, routes),
        packed.gate_up_blocks.view(torch.int32),
        packed.gate_up_scales,
        packed.gate_up_bias,
        inner_PI,
        index_P.numel(),
        packed.expert_count,
        packed.alpha,
        packed.limit,
        LIFT if tiles.down.late_scale and hidden_TH.dtype == torch.bfloat16 else 1.0,
        TOP_K=index_P.numel() // tokens,
        ROW_COUNT=rows,
        GROUPS=hidden_size // 32,
        **_options(routes, tile),
    )
    return inner_PI


def _down(
    inner_PI: torch.Tensor,
    index_P: torch.Tensor,
    weight_P: torch.Tensor,
    routes: Routes | None,
    packed: PackedExperts,
    tile: Tile,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Each route's weighted output `[P, H]` in `dtype`; rows of other ranks' routes hold anything."""
    rows = packed.down_bias.shape[1]
    rows_PH = torch.empty(index_P.numel(), rows, dtype=dtype, device=inner_PI.device)
    down_kernel[_grid(index_P, routes, rows, tile)](
        inner_PI,
        *_routes_arguments(index_P, routes),
        packed.down_blocks.view(torch.int32),
        packed.down_scales,
        packed.down_bias,
        weight_P,
        rows_PH,
        index_P.numel(),
        packed.expert_count,
        ROW_COUNT=rows,
        GROUPS=inner_PI.shape[1] // 32,
        LATE=tile.late_scale,
        **_options(routes, tile),
    )
    return rows_PH


def _grid(index_P: torch.Tensor, routes: Routes | None, rows: int, tile: Tile) -> tuple[int, int]:
    """(what varies fastest, the other): tiles of routes and of rows; the reverse for a list that goes `by_expert`."""
    row_tiles = blocks_of(rows, tile.rows)
    if routes is None:
        return index_P.numel(), row_tiles
    tiles = routes.expert_S.numel()
    return (row_tiles, tiles) if tile.by_expert else (tiles, row_tiles)


def _routes_arguments(index_P: torch.Tensor, routes: Routes | None) -> tuple[torch.Tensor, ...]:
    """The index and the list; without one the index stands in for pointers that are not read."""
    if routes is None:
        return (index_P,) * 5
    return index_P, routes.order_P, routes.expert_S, routes.first_S, routes.count_S


def _options(routes: Routes | None, tile: Tile) -> dict[str, Any]:
    return {
        "LISTED": routes is not None,
        "ROUTES": _ROUTES_WITHOUT_LIST if routes is None else 1,
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "STEP": tile.groups,
        "BATCHED": tile.batched,
        "NARROWER": () if routes is None else tile.narrower,
        "ROWS_FIRST": int(routes is not None and tile.by_expert),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
