"""Records which kernels a step would launch, without a GPU: tensors on the device `meta` have shapes and no memory.

What Triton looks at when it decides whether to compile anew is kept with each launch: types, constants, which numbers
are 1 or divisible by 16, and which pointers are aligned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from kernel_compile import Compiled, compile_kernel
from triton.runtime.jit import JITFunction

_TYPES = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}
_OPTIONS = ("num_warps", "num_stages", "launch_pdl", "enable_fp_fusion")


@dataclass(frozen=True)
class Launch:
    """One kernel as Triton would compile it."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]
    options: tuple[tuple[str, int], ...]

    def compile(self, capability: int = 90) -> Compiled:
        """For `sm_<capability>`."""
        signature, constants = dict(self.signature), dict(self.constants)
        return compile_kernel(self.kernel, signature, constants, capability, self.aligned, **dict(self.options))


@contextmanager
def recorded(monkeypatch: Any) -> Iterator[list[Launch]]:
    """The launches of the block, each different one once; they do nothing."""
    found: dict[Launch, None] = {}
    launches: list[Launch] = []

    def run(self: Any, *given: Any, grid: Any, warmup: bool, **named: Any) -> None:
        assert not warmup
        assert all(0 < size < 2**16 for size in grid[1:]), grid
        launch = _launch(self, given, named)
        if launch not in found:
            found[launch] = None
            launches.append(launch)

    with monkeypatch.context() as patched:
        patched.setattr(JITFunction, "run", run)
        yield launches


def _launch(kernel: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Launch:
    options = tuple((name, named.pop(name)) for name in _OPTIONS if name in named)
    values = {**dict(zip(kernel.arg_names, given, strict=False)), **named}
    assert set(values) == set(kernel.arg_names), (kernel, set(kernel.arg_names) ^ set(values))
    signature, constants, aligned = [], [], []
    for parameter in kernel.params:
        name, value = parameter.name, values[parameter.name]
        if parameter.is_constexpr or (not parameter.do_not_specialize and type(value) is int and value == 1):
            constants.append((name, value))
            continue
        signature.append((name, _type_of(value)))
        if not parameter.do_not_specialize and _divisible(value, parameter.do_not_specialize_on_alignment):
            aligned.append(name)
    return Launch(kernel, tuple(signature), tuple(constants), tuple(aligned), options)


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    assert type(value) is int, value
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _divisible(value: Any, not_pointers: bool) -> bool:
    if isinstance(value, torch.Tensor):
        return not not_pointers and value.storage_offset() * value.itemsize % 16 == 0
    return type(value) is int and value % 16 == 0
