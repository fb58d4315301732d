"""Can this rank's device compute what the run asks for, and does its share of the model fit?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gptoss_dist.doctor.finding import Finding, error, ok, warning
from gptoss_dist.hub_config import shape_of
from gptoss_dist.kernels.registry import choose_kernels
from gptoss_dist.memory import RankMemory, predict
from gptoss_dist.model.source import TINY
from gptoss_dist.plan.capacity import RESERVE_BYTES
from gptoss_dist.plan.degrees import check_plan, choose_plan, resolve_degrees
from gptoss_dist.plan.rules import rules_of
from gptoss_dist.schema.run import RunConf

_LOWEST = (8, 0)
"""Compute capability of the built-in kernels: Ampere."""
_OTHERS_BYTES = 2 << 30
"""A GPU that nobody uses shows less than this as taken: CUDA's own context."""


@dataclass(frozen=True)
class Gpu:
    """What CUDA says of a GPU."""

    name: str
    capability: tuple[int, int]
    free: int
    total: int
    """Bytes."""


def gpu_of(device: torch.device) -> Gpu | None:
    """This rank's GPU; None on a CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    return Gpu(name, capability, free, total)


def device_findings(run: RunConf, device: torch.device, rank: int, world_size: int, path: str) -> Iterator[Finding]:
    """The device, the kernels that would run on it, and whether the rank's share of the model at `path` fits.

    Raises ConfigError, KernelError and CheckpointError as a run would.
    """
    gpu = gpu_of(device)
    yield from [on_cpu(path)] if gpu is None else judge(gpu)
    shape, packed = shape_of(path)
    packed = packed and not run.model.dequantize
    chosen = choose_kernels(run.kernels, device, packed)
    yield ok("kernels", chosen.reason or f"attention: {chosen.attention}; experts: {chosen.experts.value}")
    plan, degrees = run.plan, resolve_degrees(run.plan, world_size, world_size)
    if plan.auto:
        plan, _ = choose_plan(shape, world_size)
        degrees = resolve_degrees(plan, world_size, world_size)
    check_plan(plan, shape, degrees, packed)
    dtype = "bfloat16" if run.model.dtype.value == "auto" else run.model.dtype.value
    share = predict(shape, rules_of(plan, packed), degrees, packed, dtype, rank)
    if gpu is not None and not plan.device_map:
        yield fit(gpu, share, run.engine.memory_fraction, shape.max_position)


def on_cpu(path: str) -> Finding:
    """A rank without a GPU: right for the toy alone."""
    if path == TINY:
        return ok("device", "the CPU, which is enough for the toy")
    return warning("device", "the CPU: gpt-oss takes seconds a token there", "run gptoss doctor where the GPUs are")


def judge(gpu: Gpu) -> Iterator[Finding]:
    """Name, capability and whether somebody else is on it."""
    major, minor = gpu.capability
    text = f"{gpu.name}, compute capability {major}.{minor}, {gpu.free / 1e9:.1f} of {gpu.total / 1e9:.1f} GB free"
    if gpu.capability < _LOWEST:
        yield error("device", text, "the built-in kernels need 8.0 (Ampere); kernels=reference runs, slowly")
        return
    yield ok("device", text)
    if gpu.total - gpu.free > _OTHERS_BYTES:
        taken = f"{(gpu.total - gpu.free) / 1e9:.1f} GB of {gpu.name} are taken by other processes"
        yield warning("device", taken, "nvidia-smi names them; the cache gets only what is free")


def fit(gpu: Gpu, share: RankMemory, fraction: float, longest: int) -> Finding:
    """Whether weights and some cache fit into what is free, and how many tokens of context that leaves."""
    room = int((gpu.free - RESERVE_BYTES - share.weights) * fraction)
    weights, free = share.weights / 1e9, gpu.free / 1e9
    if room < share.cache(1):
        text = f"weights of {weights:.1f} GB do not fit into the {free:.1f} GB that are free"
        return error("memory", text, "more ranks (plan.tp), or a GPU that nobody else uses")
    tokens = (room - share.cache_window) // share.paged_per_token
    text = f"weights {weights:.1f} GB, then room for {tokens} tokens of cache"
    if tokens < longest:
        return warning("memory", f"{text}, fewer than the model's {longest}", "more ranks (plan.tp)")
    return ok("memory", text)
