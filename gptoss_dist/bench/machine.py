"""Where and with what a measurement was made. Nothing heavy is imported that is not there already."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gptoss_dist.launcher.command import shell_text
from gptoss_dist.runtime.agree import versions

_SHOWN = ("python", "gptoss-dist", "torch", "triton", "transformers")


def facts(argv: Sequence[str]) -> dict[str, Any]:
    """Date, host's processor, versions and the command line `argv`, without the program's name."""
    found = versions()
    return {
        "command": shell_text(["gptoss", *argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "versions": {name: found[name] for name in _SHOWN},
    }


def gpu_name() -> str | None:
    """The name that CUDA gives this rank's GPU; None where torch is not loaded or uses none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name())


def cuda_version() -> str | None:
    """The CUDA that torch was built for; None where torch is not loaded, or knows none."""
    torch = sys.modules.get("torch")
    return None if torch is None else torch.version.cuda


def process_age_s(pid: int | None = None) -> float | None:
    """Seconds since a process (default: this one) started, to a hundredth; None where there is no `/proc`."""
    try:
        fields = Path(f"/proc/{pid or 'self'}/stat").read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return None
    return uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), starttime


def resident_bytes() -> int | None:
    """Memory of this process that is not swapped out; None where there is no `/proc`."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def gpu_bytes() -> int | None:
    """Memory taken on this rank's GPU by whomever; None without one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
