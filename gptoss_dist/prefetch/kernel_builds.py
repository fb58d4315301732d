"""Which builds of a hub kernel fit: its folders below `build/` are named after what they were built for.

    torch211-cxx11-cu130-x86_64-linux    one version of torch, C++ ABI, CUDA, processor, system
    torch-stable-abi211-cu130-x86_64-linux   torch's stable ABI, from that version on
    torch-cuda, torch-universal          Python and Triton alone

The `kernels` package picks one of them on the machine that runs it, by its CUDA too; fetched are all that it might pick
there. The names are those of the `kernels` package's variants.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_NOT_COMPILED = ("torch-cuda", "torch-universal", "torch")
_STABLE = re.compile(r"torch-stable-abi(\d)(\d+)-")


def fitting_builds(folders: Iterable[str], torch_version: str, machine: str) -> list[str]:
    """Those of `folders` that torch `torch_version` (2.11.0+cu130) on Linux on `machine` (x86_64) can load, sorted."""
    major, minor = (int(part) for part in re.findall(r"\d+", torch_version)[:2])
    return sorted(name for name in set(folders) if _fits(name, major, minor, f"-{machine}-linux"))


def build_of(path: str) -> str | None:
    """The folder below `build/` that a file of a kernel's repository lies in; None for other files."""
    parts = path.split("/")
    return parts[1] if parts[0] == "build" and len(parts) > 2 else None


def _fits(name: str, major: int, minor: int, end: str) -> bool:
    if name in _NOT_COMPILED:
        return True
    if not name.endswith(end) or "-cu" not in name:
        return False
    stable = _STABLE.match(name)
    if stable:
        return int(stable[1]) == major and int(stable[2]) <= minor
    return name.startswith(f"torch{major}{minor}-")
