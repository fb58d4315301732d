"""Programmatic dependent launch: a kernel begins while the one before it still runs, and waits inside for its end.

What does not depend on the kernel before, the launch itself and the first loads of weights, is then over when that
ends (CUDA programming guide, "Programmatic Dependent Launch and Synchronization"; PTX `griddepcontrol`). The rules that
make it safe, for every kernel that is launched with `options`:

- every program calls `wait_for_previous`, and before it touches nothing but weights. The wait ends when the kernel
  before has ended and its writes can be seen; since that one waited as well, so has every earlier one;
- weights are not written by the kernel before: they are loaded long before the first step;
- `let_next_start` says that the next kernel may take the room that is left; it makes no write visible.

Kernels that know nothing of this may stand anywhere between: they start when all before them have ended.

It pays where what begins early keeps its weights out of the first cache's way (`projection_cuda`), and where it only
hides a launch; a kernel that streams through registers (`experts_cuda`) found the cache too small while the
kernels before still held shared memory, and does without (NOTES.md).
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from gptoss_dist.kernels.device_facts import capability

_FIRST_CAPABILITY = 9
_switch = {"on": True}


def enable(on: bool) -> None:
    """For the launches from here on, captured ones included; to compare and to time."""
    _switch["on"] = on


def options(device: torch.device) -> dict[str, Any]:
    """What a launch on `device` passes: the constant DEPENDENT and, where that is true, Triton's launch option."""
    if not _switch["on"] or device.type != "cuda" or capability(device)[0] < _FIRST_CAPABILITY:
        return {"DEPENDENT": False}
    return {"DEPENDENT": True, "launch_pdl": True}


@triton.jit
def let_next_start(DEPENDENT: tl.constexpr):
    """The next kernel may start once every program of this one has said so or has ended."""
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_previous(DEPENDENT: tl.constexpr):
    """The kernel before has ended, and what it wrote can be seen."""
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
