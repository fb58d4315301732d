"""What never changes about a device, asked once: each question takes torch some µs, and a step would ask often."""

from __future__ import annotations

from functools import lru_cache

import torch

_CPU_PROCESSORS = 2
"""How many the interpreters pretend to have: enough for several splits of small contexts."""


@lru_cache
def capability(device: torch.device) -> tuple[int, int]:
    """CUDA's compute capability; (0, 0) of a CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


@lru_cache
def processor_count(device: torch.device) -> int:
    """Streaming multiprocessors of `device`."""
    if device.type != "cuda":
        return _CPU_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
