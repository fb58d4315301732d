"""The keys of `kernels`: what computes attention and the experts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from gptoss_dist.schema.node import Node


class ExpertKernel(Enum):
    """What multiplies packed experts."""

    auto = "auto"
    reference = "reference"
    triton = "triton"
    cuda = "cuda"
    hub = "hub"


@dataclass
class KernelsConf(Node):
    """What computes attention and the experts. `attention`: auto, eager, or the name of a kernel on the hub."""

    name: str = MISSING
    attention: str = "auto"
    experts: ExpertKernel = ExpertKernel.auto
