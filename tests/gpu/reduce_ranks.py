"""Started by torchrun, one rank a GPU: the symmetric reducers against float64, in graphs that are replayed.

Exits with an AssertionError that says what differs.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.distributed as dist

from gptoss_dist.kernels.all_reduce_symmetric import symmetric_reducer
from gptoss_dist.kernels.norm_reference import add_norm
from gptoss_dist.kernels.reducer import Norm, Reducer, Routes
from gptoss_dist.launcher.env import read_rank_env
from gptoss_dist.runtime.dist import start

HIDDEN, MAX_TOKENS, EPSILON, REPLAYS = 2880, 512, 1e-5, 50
ROUTES, EXPERTS = 4, 64


def equal_on_all_ranks(tensor: torch.Tensor) -> bool:
    """Bit for bit."""
    copies = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(copies, tensor)
    return all(torch.equal(copy.view(torch.uint8), copies[0].view(torch.uint8)) for copy in copies)


def captured(step: Callable[[], torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """A graph of one call, after one call outside it."""
    step()
    torch.cuda.synchronize()
    dist.barrier()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    return graph, out


def check(reducer: Reducer, tokens: int, bound: float) -> None:
    """Fresh partials before every replay; ranks are let run apart."""
    rank, world, device = dist.get_rank(), dist.get_world_size(), torch.device("cuda", torch.cuda.current_device())
    common = torch.Generator(device).manual_seed(tokens)
    weight = torch.randn(HIDDEN, generator=common, device=device).bfloat16()
    residual = torch.zeros(tokens, HIDDEN, dtype=torch.bfloat16, device=device)
    partial_of_all = torch.zeros(world, tokens, HIDDEN, dtype=torch.bfloat16, device=device)
    graph, normed = captured(lambda: reducer.reduce_add_norm(partial_of_all[rank], Norm(residual, weight, EPSILON)))
    for replay in range(REPLAYS):
        partial_of_all.copy_(torch.randn(partial_of_all.shape, generator=common, device=device))
        residual.copy_(torch.randn(residual.shape, generator=common, device=device))
        wanted = residual.double() + partial_of_all.double().sum(dim=0)
        normed.fill_(torch.nan)
        if (replay + rank) % world == 0:
            torch.cuda._sleep(200_000)
        graph.replay()
        error = (residual.double() - wanted).norm() / wanted.norm()
        assert error < bound, f"{tokens} tokens, replay {replay}: the residual is off by {error:.1e}"
        exact = add_norm(residual, None, weight, EPSILON)
        assert (normed.float() - exact.float()).norm() / exact.float().norm() < 2e-3
        assert equal_on_all_ranks(residual)
        assert equal_on_all_ranks(normed)


def check_routes(reducer: Reducer, tokens: int, bound: float) -> None:
    """As `check`, of rows of routes, each of which belongs to one rank or to none; the others' hold NaN."""
    rank, world, device = dist.get_rank(), dist.get_world_size(), torch.device("cuda", torch.cuda.current_device())
    common = torch.Generator(device).manual_seed(tokens)
    weight = torch.randn(HIDDEN, generator=common, device=device).bfloat16()
    residual = torch.zeros(tokens, HIDDEN, dtype=torch.bfloat16, device=device)
    rows, index = torch.zeros(tokens * ROUTES, HIDDEN, device=device), residual.new_empty(tokens * ROUTES).int()
    routes, norm = Routes(rows, index, EXPERTS), Norm(residual, weight, EPSILON)
    graph, normed = captured(lambda: reducer.reduce_add_norm(routes, norm))
    for replay in range(REPLAYS):
        all_rows = torch.randn(rows.shape, generator=common, device=device)
        expert = torch.randint((world + 1) * EXPERTS, index.shape, generator=common, device=device)
        index.copy_(expert - rank * EXPERTS)
        mine = (expert // EXPERTS == rank)[:, None]
        rows.copy_(torch.where(mine, all_rows, torch.nan))
        residual.copy_(torch.randn(residual.shape, generator=common, device=device))
        counted = torch.where((expert < world * EXPERTS)[:, None], all_rows, 0).double()
        wanted = residual.double() + counted.view(tokens, ROUTES, HIDDEN).sum(dim=1)
        normed.fill_(torch.nan)
        if (replay + rank) % world == 0:
            torch.cuda._sleep(200_000)
        graph.replay()
        error = (residual.double() - wanted).norm() / wanted.norm()
        assert error < 2 * bound, f"{tokens} tokens, replay {replay}: the residual is off by {error:.1e}"
        exact = add_norm(residual, None, weight, EPSILON)
        assert (normed.float() - exact.float()).norm() / exact.float().norm() < 2e-3
        assert equal_on_all_ranks(residual)
        assert equal_on_all_ranks(normed)


def main() -> None:
    """Every method, several sizes, one after another over the same buffers."""
    world = start("cuda", read_rank_env(os.environ))
    device = world.device
    assert dist.group.WORLD is not None
    # bfloat16 rounds by up to 2^-9, one_shot at every sum
    for method, bound in (("fused", 3e-3), ("push", 3e-3), ("one_shot", 8e-3)):
        reducer = symmetric_reducer(world, dist.group.WORLD, MAX_TOKENS, HIDDEN, torch.bfloat16, device, method)
        for tokens in (1, 3, 64, 512, 1):
            check(reducer, tokens, bound)
            check_routes(reducer, tokens, bound)
    world.stop()


if __name__ == "__main__":
    main()
