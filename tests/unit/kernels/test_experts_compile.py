"""The expert kernels as GPUs would get them, at the widths of gpt-oss-120b: registers, spills, and where weights go."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

from kernel_compile import Compiled, compile_kernel
from wgmma_operands import overwritten_operands

from gptoss_dist.kernels import experts_kernels, experts_routes
from gptoss_dist.kernels.experts_tiles import ROUNDED_ABOVE, Tile, Tiles, candidates, choose

HIDDEN, GROUPS = 2880, 90
SHARED_BYTES = 227 * 1024
"""What a program may take on Hopper."""
ACTIVATIONS = ("hidden", "bias", "inner", "weight")
POINTERS = {
    **dict.fromkeys(ACTIVATIONS, "*bf16"),
    **dict.fromkeys(("order", "tile_expert", "tile_first", "tile_count", "words"), "*i32"),
    "index": "*i64",
    "counts": "*i32",
    "scales": "*u8",
    "out": "*fp32",
}
NUMBERS = {"routes": "i32", "experts": "i32", "tiles": "i32", "alpha": "fp32", "limit": "fp32", "lift": "fp32"}
DECODE = [choose(1), Tiles(choose(1).gate_up, next(t for t in candidates(1) if t.down.late_scale).down)]


def compiled(projection, tile: Tile, tokens, capability=90, activations="*bf16", groups=GROUPS) -> Compiled:
    kernel = getattr(experts_kernels, f"{projection}_kernel")
    constants = {
        "ROW_COUNT": 2 * 32 * groups if projection == "gate_up" else HIDDEN,
        "GROUPS": GROUPS if projection == "gate_up" else groups,
        "LISTED": tokens > 8,
        "ROUTES": 1 if tokens > 8 else 32,
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "STEP": tile.groups,
        "BATCHED": tile.batched,
        "NARROWER": tile.narrower,
        "ROWS_FIRST": int(tile.by_expert),
        **({"TOP_K": 4} if projection == "gate_up" else {"LATE": tile.late_scale}),
    }
    signature = {**POINTERS, **dict.fromkeys(ACTIVATIONS, activations), **NUMBERS}
    if tokens > ROUNDED_ABOVE:
        signature["out"] = activations
    aligned = tuple(name for name in kernel.arg_names if name in POINTERS)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return compile_kernel(kernel, signature, constants, capability, aligned, **options)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("tokens", [1, 64, 512, 1024, 2048, 8192])
def test_nothing_spills(tokens, capability):
    for projection in ("gate_up", "down"):
        tile = getattr(choose(tokens, hopper=capability == 90), projection)
        found = compiled(projection, tile, tokens, capability)
        assert found.spilled_bytes == 0
        assert found.shared_bytes <= (SHARED_BYTES if capability == 90 else 100 * 1024)


@pytest.mark.parametrize("tokens", [1024, 2048, 8192])
def test_every_candidate_for_many_tokens_fits(tokens):
    for tile in {tiles.gate_up for tiles in candidates(tokens)}:
        for projection in ("gate_up", "down"):
            found = compiled(projection, tile, tokens)
            assert (found.spilled_bytes, found.shared_bytes <= SHARED_BYTES) == (0, True), tile
            # Two programs a multiprocessor, where four warps were chosen for that: 65,536 registers.
            assert tile.warps > 4 or found.registers * 32 * tile.warps * 2 <= 1 << 16, tile


@pytest.mark.parametrize("tiles", DECODE, ids=["scales at once", "scales late"])
def test_few_tokens_unpack_where_the_tensor_core_wants_them(tiles):
    # Shared memory holds the steps in flight and nothing else: no unpacked weight takes a way through it.
    for projection in ("gate_up", "down"):
        tile = getattr(tiles, projection)
        found = compiled(projection, tile, 1)
        in_flight = tile.rows * tile.groups * 17 + tile.groups * 32 * 2 * tile.columns
        late_scales = tile.late_scale * tile.rows * tile.groups * 4
        assert found.shared_bytes <= (tile.stages - 1) * in_flight + late_scales
        assert "mma.sync" in found.ptx
        assert "cp.async" in found.ptx


@pytest.mark.parametrize("tokens", [1024, 2048, 8192])
def test_many_tokens_unpack_where_the_tensor_core_wants_them(tokens):
    # wgmma takes weights from registers: its first operand is a list of four, not a descriptor of shared memory.
    tile = choose(tokens).gate_up
    found = compiled("gate_up", tile, tokens)
    products = [line for line in found.ptx.splitlines() if "wgmma.mma_async" in line]
    assert all(line.count("{") == 2 for line in products), products[0]
    # Every width has products of its own.
    assert {int(width) for line in products for width in re.findall(r"m64n(\d+)k16", line)} == {
        *tile.narrower,
        tile.columns,
    }


@pytest.mark.parametrize(
    ("tokens", "groups"), [*((tokens, 90) for tokens in (64, 512, 1024, 2048, 8192)), (512, 23), (2048, 23), (8192, 23)]
)
def test_no_weights_are_overwritten_while_the_tensor_core_reads_them(tokens, groups):
    # Two calls gave different sums on a GPU where they were.
    sets = candidates(tokens) if groups == GROUPS else (candidates(tokens)[0],)
    for tile in {tile for tiles in sets for tile in (tiles.gate_up, tiles.down) if not tile.batched}:
        for projection in ("gate_up", "down"):
            found = compiled(projection, tile, tokens, groups=groups)
            code = found.disassembly()
            assert re.search(r"HGMMA\S* R\d+, R\d+,", code), "weights come from registers"
            assert overwritten_operands(code) == [], (projection, tile)
            # No product of one step runs on into the next, whatever ptxas makes of it.
            assert set(re.findall(r"wgmma\.wait_group\.sync\.aligned (\d+)", found.ptx)) == {"0"}, (projection, tile)


@pytest.mark.parametrize("activations", ["*fp16", "*fp32"])
def test_other_activations_compile_without_spilling(activations):
    tokens = 64
    tile = choose(tokens, wide=activations == "*fp32").gate_up
    assert compiled("gate_up", tile, tokens, activations=activations).spilled_bytes == 0


def test_the_list_of_routes_compiles_without_spilling():
    sizes = {"COLUMNS": 16, "UNIT": 16, "EXPERTS": 128, "BLOCK": 64, "STEP": 32}
    for kernel, changed, warps in (
        (experts_routes._group_kernel, {}, 4),
        (experts_routes._count_kernel, {"BLOCK": 128}, 8),
        (experts_routes._place_kernel, {"BLOCK": 128, "STEP": 64}, 8),
    ):
        constants = {name: size for name, size in {**sizes, **changed}.items() if name in kernel.arg_names}
        found = compile_kernel(kernel, {**POINTERS, **NUMBERS}, constants, num_warps=warps)
        assert found.spilled_bytes == 0
