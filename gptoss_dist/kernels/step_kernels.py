"""The table of functions that the engine's step is made of: plain torch everywhere, or fused Triton kernels.

Two parts of the step are not in it: `gptoss_dist.kernels.registry` gives the experts their kernel, and
`gptoss_dist.engine.reduce` chooses what sums over ranks.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gptoss_dist.errors import KernelError

Function = Callable[..., torch.Tensor]
Pair = Callable[..., tuple[torch.Tensor, torch.Tensor]]
Triple = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]

REFERENCE, TRITON, CUDA = "reference", "triton", "cuda"
CAPTURABLE_STEPS = (CUDA, TRITON)
"""Those whose step can be a CUDA graph: the references read values back from the device."""

_MODULES = {
    "embed": {REFERENCE: "embedding_reference", TRITON: "embedding_triton"},
    "add_norm": {REFERENCE: "norm_reference", TRITON: "norm_triton"},
    "sum_routes": {REFERENCE: "norm_reference", TRITON: "norm_triton"},
    "add_routes_norm": {REFERENCE: "norm_reference", TRITON: "norm_triton"},
    "rotary_angles": {REFERENCE: "rotary_reference", TRITON: "rotary_triton"},
    "rotate_and_store": {REFERENCE: "rotary_reference", TRITON: "rotary_triton"},
    "route": {REFERENCE: "router_reference", TRITON: "router_triton"},
    "project": {REFERENCE: "projection_reference", TRITON: "projection_triton", CUDA: "projection_cuda"},
    "decode_attention": {REFERENCE: "attention_tables_reference", TRITON: "attention_decode"},
    "prefill_attention": {REFERENCE: "attention_tables_reference", TRITON: "attention_prefill"},
}
"""Function → table → its module. The table of CUDA C++ has Triton's functions where there are none of its own."""

_FUSED: dict[str, dict[str, str]] = {
    "begin_attention": {TRITON: "attention_begin_triton", CUDA: "projection_cuda"},
    "end_attention": {TRITON: "attention_end_triton", CUDA: "projection_cuda"},
}
"""As `_MODULES`, for functions that do the work of several; where there is none the step calls those several."""


@dataclass(frozen=True)
class StepKernels:
    """One function for each part of the step; what they take and give is written where each is defined."""

    name: str
    embed: Function
    add_norm: Function
    sum_routes: Function
    add_routes_norm: Function
    rotary_angles: Pair
    rotate_and_store: Function
    route: Pair
    project: Function
    decode_attention: Function
    prefill_attention: Function
    begin_attention: Function | None = None
    """`project`, then `rotate_and_store`."""
    end_attention: Triple | None = None
    """`project` into the residual, norm and `route`, where attention is whole on each rank."""

    @property
    def capturable(self) -> bool:
        """Whether a step of these can be a CUDA graph."""
        return self.name in CAPTURABLE_STEPS

    @property
    def compiled(self) -> bool:
        """Whether CUDA C++ may be compiled for what goes with it; `triton` promises to do without."""
        return self.name == CUDA


def step_kernels(name: str, problem: str = "") -> StepKernels:
    """The table called `reference`, `triton` or `cuda`; for any other name a KernelError, which says `problem`."""
    if name not in (REFERENCE, TRITON, CUDA):
        raise KernelError(
            f"backend=engine has attention kernels of its own, and {problem or f'{name!r} is not one of them'}. Take "
            "kernels.attention=auto or kernels.attention=eager, or backend=transformers."
        )
    tables = (CUDA, TRITON) if name == CUDA else (name,)
    chosen = {
        function: next((modules[table] for table in tables if table in modules), None)
        for function, modules in (_MODULES | _FUSED).items()
    }
    found: dict[str, Any] = {
        function: getattr(importlib.import_module(f"gptoss_dist.kernels.{module}"), function)
        for function, module in chosen.items()
        if module is not None
    }
    return StepKernels(name=name, **found)
