"""What this machine is, as one line of JSON: names, versions, and how fast its GPU copies memory and multiplies."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata

import torch

BYTES = 4 << 30
SIDE = 8192


def median_seconds(step) -> float:
    """Of ten calls, by events of the device."""
    times = []
    for _ in range(13):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return sorted(times[3:])[5]


def version_of(package: str) -> str:
    """As installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def main() -> None:
    """Print it."""
    packages = ("torch", "triton", "transformers", "kernels", "pytest", "pytest-xdist", "pytest-timeout")
    facts: dict[str, object] = {"python": platform.python_version(), "cores": os.cpu_count()}
    facts |= {name: version_of(name) for name in packages}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {"gpu": properties.name, "gpus": torch.cuda.device_count(), "memory": properties.total_memory}
        facts |= {"processors": properties.multi_processor_count, "cuda": torch.version.cuda}
        source = torch.empty(BYTES, dtype=torch.uint8, device="cuda").random_()
        target = torch.empty_like(source)
        facts["copy_tb_per_s"] = round(2 * BYTES / median_seconds(lambda: target.copy_(source)) / 1e12, 2)
        facts["read_tb_per_s"] = round(BYTES / median_seconds(lambda: source.view(torch.int64).sum()) / 1e12, 2)
        left, right = (torch.randn(SIDE, SIDE, device="cuda").bfloat16() for _ in range(2))
        facts["bf16_tflops"] = round(2 * SIDE**3 / median_seconds(lambda: left @ right) / 1e12)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
