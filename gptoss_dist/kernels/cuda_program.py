"""CUDA C++ of this package, compiled when it is needed by NVRTC; `cuda_launch` launches it.

NVRTC comes with torch's own dependencies, so neither a CUDA toolkit nor a host compiler is asked for; `cuda.bindings`
(NVIDIA's package, a dependency of torch for CUDA 12.9 and later) calls it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gptoss_dist.errors import KernelError
from gptoss_dist.kernels.cuda_launch import Kernel

SOURCES = Path(__file__).parent / "cuda"


def missing() -> str | None:
    """Why nothing can be compiled here, or None."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()  # the library itself is looked for at the first call
    except ImportError:
        return "the package `cuda-bindings` is not installed"
    except RuntimeError as error:
        return f"`cuda-bindings` finds no NVRTC: {' '.join(str(error).split())}"
    return None


def source_of(*names: str) -> str:
    """The text of files of `cuda/`, one after the other."""
    return "\n".join((SOURCES / name).read_text(encoding="utf-8") for name in names)


def compile_cubin(source: str, kernels: Sequence[str], capability: tuple[int, int]) -> tuple[bytes, list[bytes]]:
    """Machine code of instances such as `scale<4, true>`, and the names that they have in it. Needs no GPU.

    Raises KernelError with the compiler's words.
    """
    from cuda.bindings import nvrtc

    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), b"gptoss_dist.cu", 0, [], []))
    for kernel in kernels:
        _checked(nvrtc.nvrtcAddNameExpression(program, kernel.encode()))
    own = "a" if capability == (9, 0) else ""  # with what only this generation has: warpgroup products
    options = [f"--gpu-architecture=sm_{capability[0]}{capability[1]}{own}".encode(), b"--std=c++17"]
    status, *_ = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if int(status):
        log = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, log)
        raise KernelError(f"CUDA kernels do not compile for compute capability {capability}:\n{log.decode()}")
    code = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
    _checked(nvrtc.nvrtcGetCUBIN(program, code))
    names = [_checked(nvrtc.nvrtcGetLoweredName(program, kernel.encode())) for kernel in kernels]
    _checked(nvrtc.nvrtcDestroyProgram(program))
    return code, names


@functools.cache
def kernels_of(files: tuple[str, ...], kernels: tuple[str, ...], device_index: int) -> tuple[Kernel, ...]:
    """Compile and load instances on a device, once in this process.

    Raises KernelError as `compile_cubin` does, and for a first call under graph capture.
    """
    from cuda.bindings import driver

    device = torch.device("cuda", device_index)
    if torch.cuda.is_current_stream_capturing():
        raise KernelError(
            f"{kernels[0]} is called on {device} for the first time under graph capture, and loading it would break "
            "the capture. Run the step once before capturing it."
        )
    code, names = compile_cubin(source_of(*files), kernels, torch.cuda.get_device_capability(device))
    with torch.cuda.device(device):
        torch.cuda.current_stream().synchronize()  # torch's context is the current one from here on
        module = _checked(driver.cuModuleLoadData(code))
    return tuple(Kernel(int(_checked(driver.cuModuleGetFunction(module, name))), device_index) for name in names)


def _checked(answer: tuple[Any, ...]) -> Any:
    """What a call of NVRTC or the driver gave beside its status."""
    status, *rest = answer
    if int(status):
        raise KernelError(f"CUDA says {status.name}.")
    return rest[0] if rest else None
