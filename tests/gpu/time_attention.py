"""Time the attention kernels at gpt-oss-120b's shapes, every candidate setting in every case.

    python tests/gpu/time_attention.py [--only decode|prefill] [--kv-heads 8 4 2] [--bandwidth 4.58e12] [--dry-run]

Launches are captured in one CUDA graph that goes through several caches in turn; a time is the median replay over the
launches in it. Where all that they read would stay in the L2 cache, each launch is preceded by a read of something
larger, and what these reads take alone is subtracted.

Prints a line for each case and setting: µs, bytes of keys and values and the share of the time that reading them at the
bandwidth would take (decode), or TFLOP/s of the pairs that are seen (prefill). Ends with the best setting of each case
and one line of JSON. `--dry-run`: toy sizes on the CPU in Triton's interpreter (set TRITON_INTERPRET=1), for the
script's own sake; its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attention_plans import DRY, REAL, Plan
from triton.runtime.errors import OutOfResources

from gptoss_dist.kernels.attention_decode import decode_attention
from gptoss_dist.kernels.attention_prefill import prefill_attention

GROUP, WINDOW = 8, 128
MOST_LAUNCHES, REPLAYS = 64, 9


def caches(plan: Plan, layout: tuple[int, bool], sequences: int, context: int, kv_heads: int) -> list[Any]:
    """(keys, values, tables) with pages in random order, as many as it takes to be cold."""
    page_size, heads_first = layout
    blocks = -(-context // page_size)
    pages = sequences * blocks
    shape = (kv_heads, page_size) if heads_first else (page_size, kv_heads)
    whole = pages * page_size * kv_heads * plan.head_size * 2 * plan.dtype.itemsize
    made = []
    for _ in range(min(MOST_LAUNCHES, -(-plan.cold_bytes // whole))):
        cache = torch.randn(2, pages, *shape, plan.head_size, dtype=plan.dtype, device=plan.device)
        table = torch.randperm(pages, device=plan.device).int().view(sequences, blocks)
        made.append((*(cache.transpose(2, 3) if heads_first else cache), table))
    return made


def seconds(calls: Sequence[Callable[[], object]], plan: Plan, size: float) -> float:
    """Of one call, each of which reads `size` bytes."""
    for call in calls[:2]:
        call()
    if plan.device == "cpu":
        started = time.perf_counter()
        for call in calls[:2]:
            call()
        return (time.perf_counter() - started) / len(calls[:2])
    if len(calls) * size >= plan.cold_bytes:
        return graph_seconds(calls) / len(calls)
    other = torch.zeros(plan.cold_bytes // 4, device=plan.device)
    mixed = [one for call in calls for one in (other.sum, call)]
    return (graph_seconds(mixed) - graph_seconds([other.sum] * len(calls))) / len(calls)


def graph_seconds(calls: Sequence[Callable[[], object]]) -> float:
    """The median replay of a graph of `calls`."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(REPLAYS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def repeated(made: list[Any]) -> list[Any]:
    """Every cache in turn, often enough to time."""
    return made * max(1, 20 // len(made))


def time_decode(plan: Plan, kv_heads: int, layout: tuple[int, bool], bandwidth: float) -> list[dict[str, Any]]:
    """Every case and setting of decode."""
    rows = []
    for sequences, context in plan.decode:
        made = repeated(caches(plan, layout, sequences, context, kv_heads))
        query, sinks, position = inputs(plan, sequences, kv_heads)
        position.fill_(context - 1)
        for window, settings in ((None, plan.full), (WINDOW, plan.sliding)):
            seen = context if window is None else min(window, context)
            size = sequences * seen * kv_heads * plan.head_size * 2 * plan.dtype.itemsize
            for setting in settings:
                calls = [
                    partial(decode_attention, query, *one, position, sinks, window, setting=setting) for one in made
                ]
                row = described("decode", sequences, context, kv_heads, layout, window, setting)
                rows.append(finished(row, calls, plan, size, bytes=size, limit_us=size / bandwidth * 1e6))
    return rows


def time_prefill(plan: Plan, kv_heads: int, layout: tuple[int, bool]) -> list[dict[str, Any]]:
    """Every case and setting of prefill."""
    rows = []
    for sequences, count in plan.prefill:
        made = caches(plan, layout, sequences, count, kv_heads)[:4]
        query, sinks, _ = inputs(plan, sequences * count, kv_heads)
        size = sequences * count * kv_heads * plan.head_size * 2 * plan.dtype.itemsize
        start = torch.zeros(sequences, dtype=torch.int32, device=plan.device)
        counts, first = start + count, torch.arange(sequences, dtype=torch.int32, device=plan.device) * count
        for window, settings in ((None, plan.prefill_full), (WINDOW, plan.prefill_sliding)):
            reach = min(count, window or count)
            pairs = sequences * (reach * (reach + 1) // 2 + (count - reach) * reach)
            for setting in settings:
                calls = [
                    partial(prefill_attention, query, *one, first, counts, start, sinks, window, count, setting=setting)
                    for one in made
                ]
                row = described("prefill", sequences, count, kv_heads, layout, window, setting)
                rows.append(finished(row, calls, plan, size, flop=4 * pairs * kv_heads * GROUP * plan.head_size))
    return rows


def inputs(plan: Plan, rows: int, kv_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, sinks, positions to be filled."""
    heads = kv_heads * GROUP
    query = torch.randn(rows, heads, plan.head_size, dtype=plan.dtype, device=plan.device)
    sinks = torch.randn(heads, dtype=plan.dtype, device=plan.device)
    return query, sinks, torch.zeros(rows, dtype=torch.int32, device=plan.device)


def described(kind: str, sequences: int, length: int, kv_heads: int, layout: Any, window: Any, setting: Any) -> Any:
    """A row without its times."""
    return {
        "kind": kind,
        "sequences": sequences,
        "length": length,
        "kv_heads": kv_heads,
        "layer": "full" if window is None else "sliding",
        "page_size": layout[0],
        "heads_first": layout[1],
        "setting": asdict(setting),
    }


def finished(
    row: dict[str, Any], calls: Sequence[Callable[[], object]], plan: Plan, size: float, **work: float
) -> dict[str, Any]:
    """`row` with its time and what follows from it, printed; a setting that cannot run says why instead."""
    head = " ".join(str(value) for name, value in row.items() if name != "setting")
    setting = "/".join(str(value) for value in row["setting"].values())
    try:
        taken = seconds(calls, plan, size)
    except (RuntimeError, OutOfResources) as problem:
        row["problem"] = str(problem).splitlines()[0]
        print(f"{head} | {setting} | {row['problem']}", flush=True)
        return row
    row |= {"us": taken * 1e6, **work}
    if "bytes" in work:
        row["fraction"] = work["limit_us"] / row["us"]
        told = f"{work['bytes'] / 1e6:.2f} MB, {row['fraction']:.0%} of the bandwidth"
    else:
        row["tflops"] = work["flop"] / taken / 1e12
        told = f"{row['tflops']:.0f} TFLOP/s"
    print(f"{head} | {setting} | {row['us']:.1f} µs, {told}", flush=True)
    return row


def print_best(rows: Sequence[dict[str, Any]]) -> None:
    """The quickest setting and layout of each case."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        case = tuple(row[name] for name in ("kind", "sequences", "length", "kv_heads", "layer"))
        if "us" in row and (case not in best or row["us"] < best[case]["us"]):
            best[case] = row
    print("\nbest of each case")
    for case, row in best.items():
        layout = f"pages of {row['page_size']}, {'heads' if row['heads_first'] else 'tokens'} first"
        print(
            *case, "|", layout, "|", "/".join(str(value) for value in row["setting"].values()), f"| {row['us']:.1f} µs"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("decode", "prefill"))
    parser.add_argument("--kv-heads", type=int, nargs="+", default=None, help="of one rank (default: 8 4 2)")
    parser.add_argument("--page-sizes", type=int, nargs="+", default=None, help="only layouts of these, tokens first")
    parser.add_argument("--bandwidth", type=float, default=4.58e12, help="bytes a second that the GPU reads")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes on the CPU")
    chosen = parser.parse_args()
    if chosen.dry_run:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        import interpreter_loops  # noqa: F401
    plan = DRY if chosen.dry_run else REAL
    if chosen.page_sizes:
        plan = replace(plan, layouts=tuple((size, False) for size in chosen.page_sizes))
    name = "CPU, dry run" if chosen.dry_run else torch.cuda.get_device_name()
    rows: list[dict[str, Any]] = []
    for kv_heads in chosen.kv_heads or ((2, 1) if chosen.dry_run else (8, 4, 2)):
        for layout in plan.layouts:
            if chosen.only != "prefill":
                rows += time_decode(plan, kv_heads, layout, chosen.bandwidth)
            if chosen.only != "decode":
                rows += time_prefill(plan, kv_heads, layout)
    print_best(rows)
    print(json.dumps({"device": name, "torch": torch.__version__, "bandwidth": chosen.bandwidth, "rows": rows}))


if __name__ == "__main__":
    main()
