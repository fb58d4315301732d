"""What lies between the ranks: which GPUs see each other over NVLink, and how fast an all-reduce of all ranks is.

Bus bandwidth is bytes × 2 (n - 1) / n / time, as in NVIDIA's nccl-tests (doc/PERFORMANCE.md): what each link carries.
"""

from __future__ import annotations

import re
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.distributed as dist

from gptoss_dist.doctor.finding import Finding, error, ok, warning
from gptoss_dist.runtime.dist import RankGroup

_SMALL = 1440
"""float32 values of 5,760 bytes: one token of gpt-oss-120b in bfloat16."""
_LARGE = {"cuda": 64 << 20, "cpu": 2 << 20}
"""float32 values of the bandwidth's measurement: 256 MiB between GPUs, 8 MiB on CPUs."""
_ROUNDS = 20
_SLOW_GB_S = 20.0
"""Below any NVLink and about what PCIe 4 carries."""
_SKEW_S = 1.0


@dataclass(frozen=True)
class Reduced:
    """An all-reduce over all ranks, as this rank saw it."""

    right: bool
    latency_us: float
    """Of 5,760 bytes, the median."""
    bus_gb_s: float
    """Of a large one, the best of three."""


def link_findings(group: RankGroup, tp: int) -> Iterator[Finding]:
    """All-reduce, machines and clocks. Collective; every rank finds the same."""
    hosts = group.all_gather_object(socket.gethostname())
    yield from machine_findings(hosts, tp)
    group.barrier()
    yield clock_finding(group.all_gather_object(time.time()), hosts)
    if group.world_size > 1:
        seen = group.all_gather_object(reduce_over(group))
        yield reduce_finding(seen, hosts, group.device.type, dist.get_backend())


def reduce_over(group: RankGroup) -> Reduced:
    """Time all-reduces of all ranks, and see that their sums are right. Collective."""
    device, size = group.device, group.world_size
    small = torch.full((_SMALL,), float(group.rank + 1), device=device)
    dist.all_reduce(small)
    right = bool((small == size * (size + 1) / 2).all())
    large = torch.ones(_LARGE[device.type], device=device)
    dist.all_reduce(large)
    right = right and bool((large == size).all())
    for one in (small, large):
        one.zero_()  # sums that stay what they are, so that nothing but the sum is timed
    times = [_seconds(lambda: dist.all_reduce(small), device) for _ in range(_ROUNDS)]
    best = min(_seconds(lambda: dist.all_reduce(large), device) for _ in range(3))
    bus = large.nbytes * 2 * (size - 1) / size / best
    return Reduced(right, statistics.median(times) * 1e6, bus / 1e9)


def reduce_finding(seen: Sequence[Reduced], hosts: Sequence[str], device: str, backend: str) -> Finding:
    """One line from what all ranks saw: the slowest of each."""
    wrong = [rank for rank, one in enumerate(seen) if not one.right]
    if wrong:
        text = f"a sum over all ranks is wrong on ranks {', '.join(map(str, wrong))}"
        return error(
            "all-reduce", text, "NCCL_P2P_DISABLE=1 tells whether links between GPUs are at fault; so does dmesg"
        )
    latency, bus = max(one.latency_us for one in seen), min(one.bus_gb_s for one in seen)
    text = f"{backend}, {len(seen)} ranks: {latency:.0f} µs for one token, {bus:.1f} GB/s for a large one"
    if device == "cuda" and len(set(hosts)) == 1 and bus < _SLOW_GB_S:
        return warning("all-reduce", f"{text}, slower than NVLink", "look at `nvidia-smi topo -m` and NCCL_DEBUG=INFO")
    return ok("all-reduce", text)


def machine_findings(hosts: Sequence[str], tp: int) -> Iterator[Finding]:
    """Which machines the ranks are on, and whether a replica crosses from one to another."""
    names = sorted(set(hosts))
    yield ok("machines", f"{len(hosts)} rank{'s' * (len(hosts) != 1)} on {', '.join(names)}")
    replicas = [hosts[first : first + tp] for first in range(0, len(hosts), tp)]
    crossing = [number for number, machines in enumerate(replicas) if len(set(machines)) > 1]
    if crossing:
        text = f"the {tp} ranks of replica {crossing[0]} are on several machines: every layer waits for the network"
        yield warning("machines", text, "plan.tp at most the GPUs of a machine, and plan.dp for the rest")


def clock_finding(times: Sequence[float], hosts: Sequence[str]) -> Finding:
    """How far apart the machines' clocks are, at one moment."""
    skew = max(times) - min(times)
    if skew <= _SKEW_S:
        return ok("clock", f"within {skew:.2f} s on all machines")
    early, late = hosts[times.index(min(times))], hosts[times.index(max(times))]
    text = f"{late} is {skew:.1f} s ahead of {early}: shared batches tell by the clock which process is alive"
    return warning("clock", text, "set the clocks by NTP (timedatectl)")


def topology_findings() -> Iterator[Finding]:
    """How this machine's GPUs are linked, as `nvidia-smi topo -m` says; nothing where that command is not."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return
    try:
        done = subprocess.run([command, "topo", "-m"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as failure:
        yield warning("links", f"nvidia-smi topo -m gave nothing: {failure}", "see whether nvidia-smi works at all")
        return
    yield from judge_topology(topology(done.stdout))


def topology(text: str) -> dict[tuple[int, int], str]:
    """The link of each pair of GPUs (NV18, PIX, PHB, SYS, …) out of nvidia-smi's matrix."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    rows = [line.split("\t") for line in plain.splitlines() if re.match(r"GPU\d+\t", line)]
    cells = [[cell.strip() for cell in row[1 : len(rows) + 1]] for row in rows]
    return {(one, other): cells[one][other] for one, other in combinations(range(len(rows)), 2)}


def judge_topology(links: dict[tuple[int, int], str]) -> Iterator[Finding]:
    """One line; a warning where some pair has no NVLink."""
    if not links:
        return
    kinds = sorted(set(links.values()))
    apart = [pair for pair, kind in links.items() if not kind.startswith("NV")]
    if not apart:
        yield ok("links", f"all GPUs of the machine by NVLink ({', '.join(kinds)})")
        return
    (one, other), kind = apart[0], links[apart[0]]
    text = f"GPU {one} and GPU {other} have no NVLink ({kind}), nor have {len(apart) - 1} other pairs"
    yield warning("links", text, "tp within GPUs that have it; plan=dp_tp for the rest")


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of `work` to its end on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
