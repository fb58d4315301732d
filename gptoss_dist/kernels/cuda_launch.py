"""Launches of compiled CUDA C++ on torch's current stream, by the driver's C interface.

`cuda.bindings` launches too, with objects that are made anew for every launch: some 40 µs of the host, where this needs
a fifth. The structures are those of cuda.h (CUDA driver API, "Execution Control", `cuLaunchKernelEx`).
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Sequence

import torch

from gptoss_dist.errors import KernelError
from gptoss_dist.kernels.device_facts import processor_count

Argument = torch.Tensor | int | float
_DRIVER = "libcuda.so.1"
_PROGRAMMATIC_STREAM_SERIALIZATION = 6
_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
_BUFFER_POINTER, _BUFFER_SIZE, _END = 1, 2, 0
_SHARED_WITHOUT_ASKING = 48 << 10


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute; the value is a union of 64 bytes, of which an int is used."""

    _fields_ = (("id", ctypes.c_int), ("padding", ctypes.c_char * 4), ("value", ctypes.c_int * 16))


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        *((name, ctypes.c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z")),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(LaunchAttribute)),
        ("attribute_count", ctypes.c_uint),
    )


_EARLY = ctypes.pointer(LaunchAttribute(_PROGRAMMATIC_STREAM_SERIALIZATION, b"", (1,)))


class Kernel:
    """One compiled kernel on one device."""

    def __init__(self, function: int, device_index: int) -> None:
        """`function`: the driver's handle, a CUfunction."""
        self._function, self._device_index = ctypes.c_void_p(function), device_index
        self._most_shared = _SHARED_WITHOUT_ASKING
        self._layout = struct.Struct("")
        self._fitting: set[tuple[tuple[int, int], int, int]] = set()

    def __call__(
        self,
        grid: tuple[int, int],
        threads: int,
        shared_bytes: int,
        *arguments: Argument,
        early: bool = False,
        together: bool = False,
    ) -> None:
        """Launch on the current stream; tensors go as pointers, int as 32 bits, float as float32.

        `early`: blocks may begin before the launch before it has ended; the kernel waits itself where it has to
        (programmatic dependent launch). `together`: blocks wait for each other, so all have to fit the device at once.
        (A cooperative launch would see to that, but is refused in a graph beside early launches.) Raises KernelError
        with the driver's name of what went wrong, and if blocks that wait for each other do not fit.
        """
        if shared_bytes > self._most_shared:
            self._allow_shared(shared_bytes)
        if together and (grid, threads, shared_bytes) not in self._fitting:
            self._check_fits(grid, threads, shared_bytes)
        if not self._layout.size:
            self._layout = layout_of(arguments)
        extra, owned = packed(self._layout, arguments)
        config = LaunchConfig(
            *(*grid, 1, threads, 1, 1, shared_bytes),
            torch._C._cuda_getCurrentRawStream(self._device_index),
            *((_EARLY, 1) if early else (None, 0)),
        )
        _check(_driver().cuLaunchKernelEx(ctypes.byref(config), self._function, None, extra))
        del owned  # which had to live until here

    def _allow_shared(self, shared_bytes: int) -> None:
        _check(_driver().cuFuncSetAttribute(self._function, _MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes))
        self._most_shared = shared_bytes

    def _check_fits(self, grid: tuple[int, int], threads: int, shared_bytes: int) -> None:
        found = ctypes.c_int()
        _check(
            _driver().cuOccupancyMaxActiveBlocksPerMultiprocessor(
                ctypes.byref(found), self._function, threads, shared_bytes
            )
        )
        processors, blocks = processor_count(torch.device("cuda", self._device_index)), grid[0] * grid[1]
        if found.value * processors < blocks:
            raise KernelError(
                f"{blocks} blocks of {threads} threads and {shared_bytes} bytes of shared memory wait for each other, "
                f"and cuda:{self._device_index} runs {found.value} on each of {processors} multiprocessors. Take "
                "kernels.experts=triton."
            )
        self._fitting.add((grid, threads, shared_bytes))


def layout_of(arguments: Sequence[Argument]) -> struct.Struct:
    """How C lays such parameters out in one buffer, each at a multiple of its size."""
    codes = ("P" if isinstance(one, torch.Tensor) else "i" if isinstance(one, int) else "f" for one in arguments)
    return struct.Struct(f"@{''.join(codes)}")


def packed(
    layout: struct.Struct, arguments: Sequence[Argument]
) -> tuple[ctypes.Array[ctypes.c_void_p], tuple[ctypes.Array[ctypes.c_char], ctypes.c_size_t]]:
    """What tells the driver where the parameters are; and the parameters and their size, which must live as long."""
    buffer = ctypes.create_string_buffer(layout.size)
    layout.pack_into(buffer, 0, *(one.data_ptr() if isinstance(one, torch.Tensor) else one for one in arguments))
    size = ctypes.c_size_t(layout.size)
    places = (_BUFFER_POINTER, ctypes.addressof(buffer), _BUFFER_SIZE, ctypes.addressof(size), _END)
    return (ctypes.c_void_p * len(places))(*places), (buffer, size)


@functools.cache
def _driver() -> ctypes.CDLL:
    found = ctypes.CDLL(_DRIVER)
    found.cuLaunchKernelEx.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    found.cuOccupancyMaxActiveBlocksPerMultiprocessor.argtypes = (
        *(ctypes.POINTER(ctypes.c_int), ctypes.c_void_p),
        *(ctypes.c_int, ctypes.c_size_t),
    )
    found.cuFuncSetAttribute.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
    found.cuGetErrorName.argtypes = (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p))
    return found


def _check(status: int) -> None:
    if not status:
        return
    name = ctypes.c_char_p()
    _driver().cuGetErrorName(status, ctypes.byref(name))
    raise KernelError(f"CUDA says {(name.value or str(status).encode()).decode()}.")
