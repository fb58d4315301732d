"""CUDA sources of the package compiled for the CPU (tests/unit/kernels/cuda/host.h), and what a GPU would get."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from gptoss_dist.kernels import cuda_program

HOST = Path(__file__).parent / "unit" / "kernels" / "cuda"
_WORDS = ("-std=c++20", "-O1", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC", "-pthread")


def compile_for_cpu(name: str, folder: Path) -> ctypes.CDLL:
    """The functions of a file beside host.h. Skips the test where there is no compiler."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    made = folder / f"{name}.so"
    include = (f"-I{HOST}", f"-I{cuda_program.SOURCES}")
    subprocess.run([compiler, *_WORDS, *include, "-o", made, HOST / name], check=True)
    return ctypes.CDLL(str(made))


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    """Where a tensor lies."""
    return ctypes.c_void_p(tensor.data_ptr())


def resources(cubin: Path) -> dict[str, dict[str, int]]:
    """Kernel → what `cuobjdump` says that it uses."""
    told = _tool("cuobjdump", "-res-usage", str(cubin))
    found = {}
    for name, usage in itertools.pairwise(told.splitlines()):
        if "Function" in name and "REG:" in usage:
            parts = (part.split(":") for part in usage.split() if part.split(":")[0] in ("REG", "STACK", "LOCAL"))
            found[name.split()[-1].rstrip(":")] = {key: int(value) for key, value in parts}
    assert found
    return found


def disassembly(cubin: Path) -> str:
    """What `nvdisasm` prints."""
    return _tool("nvdisasm", "-c", str(cubin))


def _tool(name: str, *words: str) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    told = subprocess.run([tool, *words], capture_output=True, text=True, check=True)
    return told.stdout + told.stderr
