"""The key that every job has."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from gptoss_dist.schema.node import Node


@dataclass
class JobConf(Node):
    """What every job has: its name."""

    name: str = MISSING
