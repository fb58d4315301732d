"""The keys of `model`: which weights, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from gptoss_dist.schema.node import Node


class Dtype(Enum):
    """The number format of activations and of the weights that are not packed; `auto`: what the checkpoint says."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


@dataclass
class ModelConf(Node):
    """Which weights, and how they are read."""

    name: str = MISSING
    path: str = MISSING
    revision: str | None = None
    dtype: Dtype = Dtype.auto
    dequantize: bool = False
