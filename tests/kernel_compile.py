"""Compiles Triton kernels for a GPU that is not here, and reads what the assembler says about them."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_COMPILED: dict[tuple[Any, ...], Compiled] = {}


@dataclass(frozen=True)
class Compiled:
    """What one kernel needs (registers of a thread, bytes spilled and of shared memory), its PTX and machine code."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    ptx: str
    cubin: bytes

    def disassembly(self) -> str:
        """The machine code, as `nvdisasm -c` prints it."""
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.cubin)
            file.flush()
            command = [str(_TOOLS / "nvdisasm"), "-c", file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def compile_kernel(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    capability: int = 90,
    aligned: tuple[str, ...] = (),
    **options: Any,
) -> Compiled:
    """Compile `kernel` (a `triton.jit` function) for `sm_<capability>`; what was compiled before is given again.

    `signature`: argument → Triton type (`*bf16`, `i32`, `fp32`); arguments of `constants` are constexpr. `aligned`:
    pointers and sizes that a launch would find divisible by 16. `options`: num_warps, num_stages.
    """
    types = {name: "constexpr" if name in constants else signature[name] for name in kernel.arg_names}
    known = (kernel, tuple(types.items()), tuple(sorted(constants.items())), capability, aligned, *options.items())
    if known not in _COMPILED:
        hints = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
        source = ASTSource(fn=kernel, signature=types, constexprs=dict(constants), attrs=hints)
        _COMPILED[known] = _compile(source, capability, options)
    return _COMPILED[known]


def _compile(source: ASTSource, capability: int, options: Mapping[str, Any]) -> Compiled:
    with triton.knobs.nvidia.scope(), contextlib.redirect_stdout(io.StringIO()) as printed:
        triton.knobs.nvidia.dump_ptxas_log = True
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    said = printed.getvalue() or _assemble(made.asm["ptx"])  # Triton does not assemble what its cache has
    registers = re.search(r"Used (\d+) registers", said)
    spilled = [int(count) for count in re.findall(r"(\d+) bytes spill", said)]
    assert registers is not None, said
    return Compiled(int(registers[1]), sum(spilled), made.metadata.shared, made.asm["ptx"], made.asm["cubin"])


def _assemble(ptx: str) -> str:
    """What the assembler says of `ptx`."""
    arch = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert arch is not None, "PTX names its target"
    command = [str(_TOOLS / "ptxas"), "-v", f"-arch={arch[1]}", "-o", "/dev/null", "-"]
    return subprocess.run(command, input=ptx, capture_output=True, text=True, check=True).stderr
