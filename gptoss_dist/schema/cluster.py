"""The keys of `cluster`: the machines a run is on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from gptoss_dist.schema.node import Node


class Device(Enum):
    """Where the ranks compute; `auto`: GPUs if this machine shows any, else the CPU."""

    auto = "auto"
    cuda = "cuda"
    cpu = "cpu"


@dataclass
class ClusterConf(Node):
    """The machines: device, how long a collective may take, how often the ranks compare what they generated."""

    name: str = MISSING
    staged: str | None = None
    device: Device = Device.auto
    timeout_s: float = 600.0
    agree_every: int = 32
    log_level: str = "info"
