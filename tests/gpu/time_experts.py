"""Times every candidate of the expert kernels at gpt-oss-120b's widths: `python tests/gpu/time_experts.py`.

Each line: microseconds of one layer's experts (median of replays of a CUDA graph), bytes of the active experts'
weights, the fraction of `--bandwidth` that reading them once in that time is, and arithmetic of routes (not of padding)
a second. A graph holds `--rotate` calls with routes of their own, so that weights come from memory and not from the
cache (50 MB). Results of all candidates are compared with the first one's. The last line is JSON. `--dry-run` runs the
same on a CPU with Triton's interpreter and toy widths, and without a clock: its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

if "--dry-run" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

import torch

from gptoss_dist.kernels import experts_cuda, experts_grouped, experts_shapes, experts_triton, norm_triton
from gptoss_dist.kernels.experts_tiles import ROUNDED_ABOVE, Tiles, candidates
from gptoss_dist.kernels.packed import PackedExperts

Forward = Callable[..., torch.Tensor]
TOP_K, ALL_EXPERTS = 4, 128
MOST_NARROW, FEWEST_WIDE, MOST_WIDE, FEWEST_GROUPED = 6.0, 1.0, 16.0, 2.0
"""Routes an expert for which weights are worth streaming in products of 8 routes, in those of 16, or being grouped."""
TOKENS = (1, 2, 4, 8, 16, 32, 64, 256, 1024, 2048, 8192)
CUTS = ((128, 90), (128, 45), (128, 23), (64, 90), (32, 90))
"""(experts here, groups here): whole, halves and quarters of every expert; halves and quarters of the experts."""


@dataclass(frozen=True)
class Sizes:
    """What is run: hidden size, experts of the model, and (experts, groups) here."""

    hidden: int
    all_experts: int
    cut: tuple[int, int]


def random_experts(sizes: Sizes, device: str, dtype: torch.dtype) -> PackedExperts:
    """Weights of one layer; random bytes are as good in any order, so nothing needs to be laid out."""
    experts, groups = sizes.cut

    def some_bytes(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, dtype=torch.uint8, device=device)

    return PackedExperts(
        gate_up_blocks=some_bytes(0, 256, experts, groups, 64, sizes.hidden // 32, 16),
        gate_up_scales=some_bytes(118, 124, experts, groups, 64, sizes.hidden // 32),
        gate_up_bias=torch.randn(experts, groups, 64, device=device).to(dtype),
        down_blocks=some_bytes(0, 256, experts, sizes.hidden, groups, 16),
        down_scales=some_bytes(118, 124, experts, sizes.hidden, groups),
        down_bias=torch.randn(experts, sizes.hidden, device=device).to(dtype),
        alpha=1.702,
        limit=7.0,
        interleaved=True,
        counters=experts_cuda.counters_on(device),
    )


def random_routes(tokens: int, rotate: int, sizes: Sizes, device: str) -> list[torch.Tensor]:
    """Distinct experts for each token; one token's experts differ from call to call while there are enough."""
    if tokens == 1:
        order = torch.randperm(sizes.all_experts, device=device).repeat(rotate)
        return [order[TOP_K * call : TOP_K * (call + 1)][None] for call in range(rotate)]
    return [
        torch.rand(tokens, sizes.all_experts, device=device).argsort(dim=1)[:, :TOP_K].contiguous()
        for _ in range(rotate)
    ]


def weight_bytes(routes: list[torch.Tensor], packed: PackedExperts) -> float:
    """Bytes of blocks and scales of the experts that one call uses here, each once; the mean over the calls."""
    tensors = (packed.gate_up_blocks, packed.gate_up_scales, packed.down_blocks, packed.down_scales)
    one_expert = sum(tensor[0].numel() for tensor in tensors)
    active = [int((torch.unique(index) < packed.expert_count).sum()) for index in routes]
    return one_expert * sum(active) / len(active)


def seconds_of(calls: Callable[[], list[torch.Tensor]], replays: int) -> tuple[float, list[torch.Tensor]]:
    """Median seconds of a replay of `calls`, and what they return."""
    if not torch.cuda.is_available():
        return 1.0, calls()
    calls()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = calls()
    times = []
    for _ in range(replays + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times[2:]), [output.clone() for output in outputs]


def ways(tokens: int, experts: int) -> dict[str, Forward]:
    """What to time for so many tokens over a model's experts: the block shapes of Triton, and of CUDA if it has any."""
    found = {named(tiles): partial(experts_triton.experts_forward, tiles=tiles) for tiles in candidates(tokens)}
    if not torch.cuda.is_available():
        return found
    routes = tokens * TOP_K / experts
    if routes >= FEWEST_GROUPED:
        for ring in experts_grouped.rings(routes):
            found[f"cuda grouped {ring.columns}x{ring.stages}"] = partial(by_groups, ring=ring)
    streamed: list[experts_shapes.Shape] = []
    if routes <= MOST_NARROW:
        streamed += experts_shapes.candidates(tokens, 0.0)
    if FEWEST_WIDE <= routes <= MOST_WIDE:
        streamed += experts_shapes.candidates(tokens, experts_shapes.MOST_ROUTES)
    for shape in dict.fromkeys(streamed):
        cut = f"{shape.row_tiles}x{shape.column_tiles}x{shape.warps}/{shape.team_warps}a{shape.ahead}b{shape.blocks}"
        found[f"cuda {cut}"] = partial(experts_cuda.experts_forward, shape=shape)
    return found


def by_groups(
    hidden_TH: torch.Tensor,
    index_TK: torch.Tensor,
    weight_TK: torch.Tensor,
    packed: PackedExperts,
    ring: experts_grouped.Ring,
) -> torch.Tensor:
    """`experts_cuda.experts_forward` by the grouped kernels, however few tokens there are."""
    index_P, dtype = index_TK.reshape(-1).int(), torch.float32 if len(index_TK) <= ROUNDED_ABOVE else torch.bfloat16
    rows_PH = experts_grouped.expert_rows(hidden_TH, index_P, weight_TK.reshape(-1), packed, dtype, ring)
    return norm_triton.sum_routes(rows_PH, index_P, hidden_TH, packed.expert_count)


def time_one(tokens: int, forward: Forward, routes: list[torch.Tensor], setting: dict[str, Any], replays: int) -> Any:
    """(microseconds a call, outputs) of one candidate, or the reason why it does not run."""
    hidden, packed = setting["hidden"], setting["packed"]
    weight = torch.full((tokens, TOP_K), 0.25, device=hidden.device, dtype=hidden.dtype)

    def calls() -> list[torch.Tensor]:
        return [forward(hidden, index, weight, packed) for index in routes]

    try:
        seconds, outputs = seconds_of(calls, replays)
    except Exception as error:  # noqa: BLE001 - a candidate too large for this GPU must not end the run
        return f"{type(error).__name__}: {str(error)[:80]}"
    return seconds * 1e6 / len(routes), outputs


def named(tiles: Tiles) -> str:
    """A candidate in a few characters: b batched, l late scales, n narrower tiles too, e expert by expert."""

    def one(tile: Any) -> str:
        shape = f"{tile.rows}x{tile.columns}x{tile.groups}w{tile.warps}s{tile.stages}"
        kinds = (tile.batched, "b"), (tile.late_scale, "l"), (tile.narrower, "n"), (tile.by_expert, "e")
        return shape + "".join(letter for has, letter in kinds if has)

    return one(tiles.gate_up) if tiles.gate_up == tiles.down else f"{one(tiles.gate_up)}+{one(tiles.down)}"


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time all that was asked for, print a line each, and return the rows."""
    device = "cpu" if arguments.dry_run else "cuda"
    dtype = torch.float32 if arguments.dry_run else torch.bfloat16
    rows = []
    for cut in ((8, 2),) if arguments.dry_run else arguments.cuts:
        sizes = Sizes(64, 8, cut) if arguments.dry_run else Sizes(2880, arguments.experts, cut)
        packed = random_experts(sizes, device, dtype)
        for tokens in arguments.tokens:
            routes = random_routes(tokens, arguments.rotate, sizes, device)
            size = weight_bytes(routes, packed)
            setting = {"hidden": torch.randn(tokens, sizes.hidden, device=device).to(dtype), "packed": packed}
            first: list[torch.Tensor] | None = None
            for name, forward in ways(tokens, sizes.all_experts).items():
                if arguments.only not in name:
                    continue
                label = f"{cut[0]:4} experts {cut[1]:3} groups {tokens:5} tokens  {name:32}"
                found = time_one(tokens, forward, routes, setting, arguments.replays)
                if isinstance(found, str):
                    print(f"{label} {found}", flush=True)
                    continue
                microseconds, outputs = found
                first = first or outputs
                error = max(
                    float((a - b).norm() / b.norm().clamp(min=1e-9)) for a, b in zip(outputs, first, strict=True)
                )
                fraction = size / (microseconds * 1e-6) / (arguments.bandwidth * 1e12)
                # A route multiplies gate, up and down: 2 operations for each weight.
                here = sum(int((index < cut[0]).sum()) for index in routes) / len(routes)
                tflops = here * 6 * sizes.hidden * 32 * cut[1] / microseconds / 1e6
                told = f"{size / 1e6:8.1f} MB {fraction:6.1%} {tflops:6.1f} TFLOP/s  {error:.1e}"
                print(f"{label} {microseconds:9.1f} µs {told}", flush=True)
                rows.append(
                    {"experts": cut[0], "groups": cut[1], "tokens": tokens, "microseconds": microseconds, "bytes": size}
                    | {"fraction": fraction, "tflops": tflops, "difference": error, "name": name}
                )
    return rows


def a_cut(text: str) -> tuple[int, int]:
    """`128x90` as numbers."""
    experts, groups = map(int, text.split("x"))
    return experts, groups


def main() -> None:
    """Read the arguments, run, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--cuts", type=a_cut, nargs="+", default=CUTS, help="EXPERTSxGROUPS here (default: all)")
    parser.add_argument("--experts", type=int, default=ALL_EXPERTS, help="of the model: 128, or 32 of gpt-oss-20b")
    parser.add_argument("--rotate", type=int, default=16, help="calls with different routes in a graph")
    parser.add_argument("--replays", type=int, default=20)
    parser.add_argument("--bandwidth", type=float, default=4.58, help="TB/s that count as 100 %% (H200: 4.58)")
    parser.add_argument("--only", default="", help="those with this in their name, as `cuda`")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    if arguments.dry_run:
        arguments.tokens, arguments.rotate = (1, 9), 2
    device = "cpu" if arguments.dry_run else torch.cuda.get_device_name()
    rows = run(arguments)
    print(json.dumps({"device": device, "torch": torch.__version__, "bandwidth": arguments.bandwidth, "rows": rows}))


if __name__ == "__main__":
    main()
