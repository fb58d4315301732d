"""The keys of `slurm`: what `gptoss slurm JOB …` asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from gptoss_dist.schema.node import Node


class SlurmLauncher(Enum):
    """What starts the ranks of a SLURM job."""

    torchrun = "torchrun"
    srun = "srun"
    accelerate = "accelerate"


@dataclass
class SlurmConf(Node):
    """What `gptoss slurm JOB …` asks SLURM for; null leaves it to the cluster."""

    name: str = MISSING
    launcher: SlurmLauncher = SlurmLauncher.torchrun
    nodes: int = 1
    gpus_per_node: int | None = None
    ranks_per_node: int | None = None
    cpus_per_node: int | None = None
    memory: str | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    job_name: str = "gptoss"
    logs: str = "logs"
    log_per_rank: bool = True
    array: int | None = None
    at_once: int | None = None
    requeue: bool = False
    signal_s: int = 120
    container: str | None = None
    modules: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    stage: str | None = None
    options: list[str] = field(default_factory=list)
    submit: bool = False
    test_only: bool = False
