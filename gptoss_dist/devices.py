"""What GPUs this machine shows, asked of its device files and environment: no driver, no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_CPU_RANKS = 2
"""Ranks that a sharded plan starts by itself on a machine without a GPU: enough to see it work."""


def visible_gpus(environ: Mapping[str, str] | None = None, folder: Path = Path("/dev")) -> int:
    """Number of NVIDIA GPUs that a process of this environment may use."""
    environ = os.environ if environ is None else environ
    present = len(list(folder.glob("nvidia[0-9]*")))
    allowed = environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return present
    return min(present, len([one for one in allowed.split(",") if one.strip() not in ("", "-1")]))


def default_ranks(gpus: int, sharded: bool) -> int:
    """How many ranks to start when neither a launcher nor the plan says: one a GPU, or on a CPU one or two."""
    return gpus or (_CPU_RANKS if sharded else 1)
