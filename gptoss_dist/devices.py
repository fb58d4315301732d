"""What GPUs this machine shows, asked of its device files and environment: no driver, no torch."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path

_CPU_RANKS = 2
"""Ranks that a sharded plan starts by itself on a machine without a GPU: enough to see it work."""


def visible_gpus(environ: Mapping[str, str] | None = None, folder: Path = Path("/dev")) -> int:
    """Number of NVIDIA GPUs that a process of this environment may use.

    As CUDA reads CUDA_VISIBLE_DEVICES, the first entry that names no GPU hides itself and all that follow.
    """
    environ = os.environ if environ is None else environ
    present = len(list(folder.glob("nvidia[0-9]*")))
    allowed = environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return present
    names = [name.strip() for name in allowed.split(",")]
    valid = itertools.takewhile(lambda name: _is_gpu(name, present), names)
    return min(present, len(list(valid)))


def _is_gpu(name: str, present: int) -> bool:
    """Whether an entry of CUDA_VISIBLE_DEVICES can name one of the `present` GPUs: an index, or a UUID."""
    return int(name) < present if name.isdecimal() else name.startswith(("GPU-", "MIG-"))


def default_ranks(gpus: int, sharded: bool) -> int:
    """How many ranks to start when neither a launcher nor the plan says: one a GPU, or on a CPU one or two."""
    return gpus or (_CPU_RANKS if sharded else 1)
