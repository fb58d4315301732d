"""Microseconds of each small kernel beside its plain-torch reference, as one line of JSON.

    python tests/gpu/time_small.py                                  one GPU, all kernels but the all-reduce
    torchrun --nproc-per-node 4 tests/gpu/time_small.py             the all-reduce with what follows it
    python tests/gpu/time_small.py --dry-run                        on the CPU at toy sizes, references only

Every case is captured in a CUDA graph of many calls over as many copies of its weights as do not fit the L2 cache; the
figure is the median over replays, divided by the calls. `dependent` is `triton` with programmatic dependent launch: the
next call's first loads begin before the one before it ends. `candidates` has each block shape of the projections, and
`layer` what a layer launches besides attention and experts, one layer after the other. Dry runs check this program,
their figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from gptoss_dist.kernels.all_reduce_reference import ProcessGroupReducer
from gptoss_dist.kernels.reducer import Norm, Reducer
from gptoss_dist.kernels.turning import Heads, Turning
from gptoss_dist.launcher.env import read_rank_env
from gptoss_dist.runtime.dist import RankGroup, start

Call = Callable[[], object]
Make = Callable[[ModuleType, "Sizes", int], list[Call]]
_BEYOND_CACHE = 128 << 20
_MOST_COPIES = 64
_REPLAYS = 30


@dataclass(frozen=True)
class Sizes:
    """A model's widths, and where and in which dtype to make tensors."""

    device: torch.device
    hidden: int = 2880
    experts: int = 128
    heads: int = 64
    kv_heads: int = 8
    head_size: int = 64
    vocab: int = 201088
    tokens: tuple[int, ...] = (1, 8, 64)
    dtype: torch.dtype = torch.bfloat16

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Random numbers here."""
        return torch.randn(shape, device=self.device, dtype=dtype or self.dtype)

    def copies(self, *shape: int) -> list[torch.Tensor]:
        """So many random weights that they do not all stay in the cache."""
        count = 1
        if self.device.type == "cuda":
            nbytes = self.dtype.itemsize * functools.reduce(int.__mul__, shape)
            count = max(1, min(_MOST_COPIES, -(-_BEYOND_CACHE // nbytes)))
        return [self.normal(*shape) for _ in range(count)]


def norm(module: ModuleType, sizes: Sizes, tokens: int) -> list[Call]:
    """Residual add and RMSNorm."""
    residual, update = sizes.normal(tokens, sizes.hidden), sizes.normal(tokens, sizes.hidden)
    return [functools.partial(module.add_norm, residual, update, weight, 1e-5) for weight in sizes.copies(sizes.hidden)]


def rotary(module: ModuleType, sizes: Sizes, tokens: int) -> list[Call]:
    """Rotary positions and the cache write."""
    page_size, heads = 64, Heads(sizes.heads, sizes.kv_heads, sizes.head_size)
    qkv = sizes.normal(tokens, heads.rows * heads.size)
    position = torch.randint(0, 131072, (tokens,), device=sizes.device)
    slot = torch.arange(tokens, device=sizes.device) * page_size
    frequency = torch.rand(sizes.head_size // 2, device=sizes.device)
    turns = module.rotary_angles(position, frequency, 1.3466, qkv.dtype)
    pages = sizes.copies(tokens, page_size, 2 * sizes.kv_heads, sizes.head_size)
    halves = [(cache[:, :, : sizes.kv_heads], cache[:, :, sizes.kv_heads :]) for cache in pages]
    return [functools.partial(module.rotate_and_store, qkv, Turning(*turns, slot, *both, heads)) for both in halves]


def router(module: ModuleType, sizes: Sizes, tokens: int) -> list[Call]:
    """Logits, top 4, softmax."""
    normed, bias = sizes.normal(tokens, sizes.hidden), sizes.normal(sizes.experts)
    weights = sizes.copies(sizes.experts, sizes.hidden)
    return [functools.partial(module.route, normed, weight, bias, 4) for weight in weights]


def norm_route(module: ModuleType, sizes: Sizes, tokens: int) -> list[Call]:
    """The router with the norm before it."""
    residual, norm_H, bias = sizes.normal(tokens, sizes.hidden), sizes.normal(sizes.hidden), sizes.normal(sizes.experts)
    weights = sizes.copies(sizes.experts, sizes.hidden)
    return [functools.partial(module.norm_route, residual, norm_H, 1e-5, weight, bias, 4) for weight in weights]


def add_routes_norm(module: ModuleType, sizes: Sizes, tokens: int) -> list[Call]:
    """The sum of each token's routes with residual add and RMSNorm."""
    residual, rows = sizes.normal(tokens, sizes.hidden), sizes.normal(4 * tokens, sizes.hidden, dtype=torch.float32)
    index = torch.randint(0, sizes.experts, (4 * tokens,), device=sizes.device, dtype=torch.int32)
    return [
        functools.partial(module.add_routes_norm, residual, rows, index, sizes.experts, weight, 1e-5)
        for weight in sizes.copies(sizes.hidden)
    ]


def project(rows: str, module: ModuleType, sizes: Sizes, tokens: int, **tiles: Any) -> list[Call]:
    """One of the matrix products of a step; `tiles`: block shapes for `projection_triton`."""
    query, qkv = sizes.heads * sizes.head_size, (sizes.heads + 2 * sizes.kv_heads) * sizes.head_size
    count, columns = {
        "qkv": (qkv, sizes.hidden),
        "out": (sizes.hidden, query),
        "lm_head": (sizes.vocab, sizes.hidden),
    }[rows]
    x = sizes.normal(tokens, columns)
    return [functools.partial(module.project, x, weight, None, **tiles) for weight in sizes.copies(count, columns)]


def sample(module: ModuleType, sizes: Sizes, tokens: int) -> list[Call]:
    """The best of all columns, with noise."""
    temperature = torch.ones(tokens, device=sizes.device)
    seed, position = (torch.randint(0, 1 << 31, (tokens,), device=sizes.device) for _ in range(2))
    return [
        functools.partial(module.best_of_shard, logits, 0, temperature, seed, position)
        for logits in sizes.copies(tokens, sizes.vocab)
    ]


def embed(module: ModuleType, sizes: Sizes, tokens: int) -> list[Call]:
    """Rows of the embedding."""
    ids = torch.randint(0, sizes.vocab, (tokens,), device=sizes.device)
    return [functools.partial(module.embed, ids, sizes.normal(sizes.vocab, sizes.hidden), 0)]


CASES: dict[str, tuple[str, Make]] = {
    "norm": ("norm", norm),
    "rotary": ("rotary", rotary),
    "add_routes_norm": ("norm", add_routes_norm),
    "router": ("router", router),
    "norm_route": ("router", norm_route),
    "sample": ("sample", sample),
    "embed": ("embedding", embed),
    **{f"project_{rows}": ("projection", functools.partial(project, rows)) for rows in ("qkv", "out", "lm_head")},
}


def microseconds(calls: list[Call], device: torch.device) -> float:
    """Median time of one call."""
    for call in calls:
        call()
    if device.type != "cuda":
        begin = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - begin) * 1e6 / len(calls)
    torch.cuda.synchronize()
    repeated = calls * max(1, 32 // len(calls))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in repeated:
            call()
    taken = []
    for _ in range(_REPLAYS):
        begin_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin_event.record()
        graph.replay()
        end_event.record()
        torch.cuda.synchronize()
        taken.append(begin_event.elapsed_time(end_event) * 1e3 / len(repeated))
    return statistics.median(taken[3:])


def timed(make: Callable[[], list[Call]], device: torch.device) -> float | str:
    """Rounded; what went wrong instead, so that one case does not take the others with it."""
    try:
        return round(microseconds(make(), device), 2)
    except Exception as error:  # noqa: BLE001  whatever it is, it is told
        return f"{type(error).__name__}: {str(error)[:200]}"


@contextlib.contextmanager
def dependent_launches(on: bool) -> Iterator[None]:
    """Whether there is programmatic dependent launch within; without Triton there is none."""
    if importlib.util.find_spec("triton") is None:
        yield
        return
    from gptoss_dist.kernels import dependent_launch

    dependent_launch.enable(on)
    try:
        yield
    finally:
        dependent_launch.enable(True)


def time_candidates(sizes: Sizes) -> dict[str, Any]:
    """{projection: {tokens: {block shape: µs}}}."""
    from gptoss_dist.kernels import projection_triton
    from gptoss_dist.kernels.projection_tiles import candidates_few, candidates_one

    found: dict[str, Any] = {}
    for rows in ("qkv", "out"):
        for tokens, name, tiles in ((1, "one", candidates_one), (8, "few", candidates_few)):
            taken = {
                str(tile): timed(
                    functools.partial(project, rows, projection_triton, sizes, tokens, **{name: tile}), sizes.device
                )
                for tile in tiles
            }
            found.setdefault(f"project_{rows}", {})[tokens] = taken
    return found


def layer_chain(sizes: Sizes, fused: bool, tokens: int) -> list[Call]:
    """One layer after the other, without attention itself (queries stand for its result) and without the experts."""
    from gptoss_dist.kernels import norm_triton, projection_reference, rotary_triton, router_triton
    from gptoss_dist.kernels.projection_cuda import begin_attention, end_attention

    query, qkv = sizes.heads * sizes.head_size, (sizes.heads + 2 * sizes.kv_heads) * sizes.head_size
    residual, normed = sizes.normal(tokens, sizes.hidden), sizes.normal(tokens, sizes.hidden)
    rows = sizes.normal(4 * tokens, sizes.hidden, dtype=torch.float32)
    norm_H, bias_H, bias_C, bias_E = (sizes.normal(n) for n in (sizes.hidden, sizes.hidden, qkv, sizes.experts))
    cache = [sizes.normal(tokens, 16, sizes.kv_heads, sizes.head_size) for _ in range(2)]
    position = torch.randint(0, 131072, (tokens,), device=sizes.device, dtype=torch.int32)
    slot, frequency = torch.arange(tokens, device=sizes.device) * 16, torch.rand(32, device=sizes.device)
    turns = rotary_triton.rotary_angles(position, frequency, 1.3466, normed.dtype)
    turning = Turning(*turns, slot, *cache, Heads(sizes.heads, sizes.kv_heads, sizes.head_size))
    weights = zip(sizes.copies(qkv, sizes.hidden), sizes.copies(sizes.hidden, query), strict=False)

    def layer(qkv_CH: torch.Tensor, output_HC: torch.Tensor, router_EH: torch.Tensor) -> None:
        router = (router_EH, bias_E, 4)
        if fused:
            seen = begin_attention(normed, qkv_CH, bias_C, turning).flatten(1)
            _, index, _ = end_attention(seen, output_HC, bias_H, residual, norm_H, 1e-5, *router)
        else:
            made = projection_reference.project(normed, qkv_CH, bias_C)
            seen = rotary_triton.rotate_and_store(made, turning).flatten(1)
            made = projection_reference.project(seen, output_HC, bias_H)
            index, _ = router_triton.route(norm_triton.add_norm(residual, made, norm_H, 1e-5), *router)
        norm_triton.add_routes_norm(residual, rows, index.flatten(), sizes.experts, norm_H, 1e-5)

    return [functools.partial(layer, *both, sizes.normal(sizes.experts, sizes.hidden)) for both in weights]


def time_layers(sizes: Sizes) -> dict[str, Any]:
    """{tokens: {how: µs}}."""
    kinds = {"separate": (False, False), "fused": (True, False), "separate, dependent": (False, True)}
    kinds["fused, dependent"] = (True, True)
    found: dict[str, Any] = {}
    for tokens in sizes.tokens:
        for name, (fused, dependent) in kinds.items():
            with dependent_launches(dependent):
                taken = timed(functools.partial(layer_chain, sizes, fused, tokens), sizes.device)
            found.setdefault(str(tokens), {})[name] = taken
    return found


def time_kernels(sizes: Sizes) -> dict[str, Any]:
    """{kernel: {tokens: {"reference": µs, "triton": µs, "dependent": µs}}}; no Triton on a CPU."""
    kinds = ("reference", "triton", "dependent") if sizes.device.type == "cuda" else ("reference",)
    found: dict[str, Any] = {}
    for name, (file, make) in CASES.items():
        for tokens in sizes.tokens:
            for kind in kinds:
                suffix = "reference" if kind == "reference" else "triton"
                module = importlib.import_module(f"gptoss_dist.kernels.{file}_{suffix}")
                with dependent_launches(kind == "dependent"):
                    taken = timed(functools.partial(make, module, sizes, tokens), sizes.device)
                found.setdefault(name, {}).setdefault(tokens, {})[kind] = taken
    return found


def summed_tokens(sizes: Sizes) -> tuple[int, ...]:
    """Sizes of sums."""
    return sizes.tokens if sizes.device.type == "cpu" else (*sizes.tokens, 256, 512, 1024, 2048)


def reducers(world: RankGroup, sizes: Sizes) -> dict[str, Reducer]:
    """Every way to sum over the ranks here."""
    group = dist.group.WORLD
    assert group is not None
    if sizes.device.type != "cuda":
        return {"process_group": ProcessGroupReducer(group)}
    from gptoss_dist.kernels.all_reduce_symmetric import symmetric_reducer
    from gptoss_dist.kernels.norm_triton import add_norm, sum_routes

    arguments = (world, group, max(summed_tokens(sizes)), sizes.hidden, sizes.dtype, sizes.device)
    return {
        "process_group": ProcessGroupReducer(group, add_norm, sum_routes, wide=False),
        "process_group_wide": ProcessGroupReducer(group, add_norm, sum_routes),
        "one_shot": symmetric_reducer(*arguments, method="one_shot"),
        "fused": symmetric_reducer(*arguments),
        "push": symmetric_reducer(*arguments, method="push"),
    }


def time_all_reduce(world: RankGroup, sizes: Sizes) -> dict[str, Any]:
    """{way: {tokens: µs}} of the sum with residual and norm; of the step's tokens and of some prompts."""
    found: dict[str, Any] = {}
    for name, reducer in reducers(world, sizes).items():
        for tokens in summed_tokens(sizes):
            partial, residual = sizes.normal(tokens, sizes.hidden), sizes.normal(tokens, sizes.hidden)
            weight = sizes.normal(sizes.hidden)
            call = functools.partial(reducer.reduce_add_norm, partial, Norm(residual, weight, 1e-5))
            dist.barrier()
            found.setdefault(name, {})[tokens] = round(microseconds([call] * 32, sizes.device), 2)
    return found


def main() -> None:
    """Print the JSON, on rank 0."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dry-run", action="store_true")
    dry_run = parser.parse_args().dry_run
    ranks, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if dry_run:
        sizes = Sizes(torch.device("cpu"), 32, 8, 4, 2, 8, 96, (1, 3), torch.float32)
    else:
        sizes = Sizes(torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))))
        torch.cuda.set_device(sizes.device)
    line: dict[str, Any] = {"unit": "us", "dry_run": dry_run, "ranks": ranks, "torch": torch.__version__}
    line["device"] = "cpu" if dry_run else torch.cuda.get_device_name(sizes.device)
    if ranks > 1:
        world = start("cpu" if dry_run else "cuda", read_rank_env(os.environ))
        line["all_reduce"] = time_all_reduce(world, sizes)
        world.stop()
    else:
        line["kernels"] = time_kernels(sizes)
        if not dry_run:
            line["candidates"], line["layer"] = time_candidates(sizes), time_layers(sizes)
    if rank == 0:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
