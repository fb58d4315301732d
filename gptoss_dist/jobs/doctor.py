"""`gptoss doctor`: look at everything that a run needs, on the ranks that it would have, before it costs anything.

Machines are looked at by their first rank, devices by every rank, and what lies between ranks by all together. What was
found is exchanged through the store, which also works where the ranks cannot form a group.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gptoss_dist.checks import FLASH3, attention_named
from gptoss_dist.devices import visible_gpus
from gptoss_dist.doctor.files import file_findings
from gptoss_dist.doctor.finding import Finding, Level, check, error
from gptoss_dist.doctor.gpu import device_findings
from gptoss_dist.doctor.links import link_findings, topology_findings
from gptoss_dist.doctor.packages import package_findings
from gptoss_dist.doctor.report import as_json as json_of
from gptoss_dist.doctor.report import errors, merge, summary, text_of
from gptoss_dist.errors import DoctorError, StagedError
from gptoss_dist.files import user_path
from gptoss_dist.launcher.env import RankEnv
from gptoss_dist.output import write_line
from gptoss_dist.plan.degrees import resolve_degrees
from gptoss_dist.runtime.dist import device_of, device_type_of, start
from gptoss_dist.schema.cluster import Device
from gptoss_dist.schema.kernels import ExpertKernel
from gptoss_dist.schema.run import RunConf
from gptoss_dist.staged import open_staged

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

    from gptoss_dist.runtime.watch import Watch

_GROUP_SECONDS = 120.0
_FOUND_SECONDS = 900.0
"""Reading a large staged folder whole takes its time on one machine, while the others wait."""


def run_without_model(run: RunConf, env: RankEnv | None, watch: Watch, as_json: bool) -> None:
    """Look, and say what was found on rank 0. Raises DoctorError on every rank if anything is in the way of a run."""
    found = list(_look(run, env, watch.store))
    rank, world_size = (env.rank, env.world_size) if env is not None else (0, 1)
    everybody = _exchange(found, rank, world_size, watch.store)
    lines = merge(everybody)
    if rank == 0:
        write_line(json.dumps(json_of(lines), ensure_ascii=False) if as_json else text_of(lines))
    if errors(lines):
        raise DoctorError(f"doctor: {summary(lines)}; a run with these words would fail.")


def _look(run: RunConf, env: RankEnv | None, store: Store | None) -> Iterator[Finding]:
    rank, world_size = (env.rank, env.world_size) if env is not None else (0, 1)
    if env is None or env.local_rank == 0:
        yield from package_findings(_wants_hub(run))
        yield from check("files", lambda: file_findings(run))
        yield from topology_findings()
    yield from check("device", lambda: _device(run, env, rank, world_size))
    yield from check("ranks", lambda: _together(run, env, store))


def _device(run: RunConf, env: RankEnv | None, rank: int, world_size: int) -> Iterator[Finding]:
    """The device that a run would take on this rank."""
    if visible_gpus() and run.cluster.device is not Device.cpu and not torch.cuda.is_available():
        way_out = f"a torch built for CUDA (here: {torch.__version__}) and a driver new enough"
        yield error("device", "the machine shows GPUs, and torch cannot use them", way_out)
    device = device_of(device_type_of(run.cluster.device), env)
    yield from device_findings(run, device, rank, world_size, _path(run))


def _together(run: RunConf, env: RankEnv | None, store: Store | None) -> Iterator[Finding]:
    """What can only be seen with all ranks in one group; that they cannot form one is an error of its own."""
    timeout = timedelta(seconds=min(run.cluster.timeout_s, _GROUP_SECONDS))
    try:
        group = start(device_type_of(run.cluster.device), env, store=store, timeout=timeout)
        tp = resolve_degrees(run.plan, group.world_size, group.world_size).tp
        yield from link_findings(group, tp)
        group.stop()
    except RuntimeError as failure:  # what torch.distributed raises, NCCL's errors included
        reason = " ".join(str(failure).split())[:300]
        way_out = "NCCL_DEBUG=INFO says more; NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME names the network to use"
        yield error("ranks", f"the ranks cannot work together: {reason}", way_out)


def _exchange(found: list[Finding], rank: int, world_size: int, store: Store | None) -> list[list[Finding]]:
    """What every rank found, by rank, on every rank."""
    if store is None or world_size == 1:
        return [found]
    mine = json.dumps([{**asdict(one), "level": one.level.value} for one in found])
    store.set(f"doctor/{rank}", mine)
    names = [f"doctor/{one}" for one in range(world_size)]
    store.wait(names, timedelta(seconds=_FOUND_SECONDS))
    entries = [json.loads(store.get(name)) for name in names]
    return [[Finding(**{**one, "level": Level(one["level"])}) for one in entry] for entry in entries]


def _wants_hub(run: RunConf) -> bool:
    attention = run.kernels.attention
    return run.kernels.experts is ExpertKernel.hub or (attention != "auto" and attention_named(attention) == FLASH3)


def _path(run: RunConf) -> str:
    """Where the model's shape is read: the staged folder if the weights are there, else `model.path`."""
    path = run.model.path
    if run.cluster.staged is None or Path(path).is_dir():
        return path
    try:
        return str(open_staged(user_path(run.cluster.staged, "cluster.staged")).weights(path, run.model.revision))
    except StagedError:  # told already, with the files
        return path
