"""Which kernels run, decided once before loading, and why the better ones do not.

An attention implementation without sinks is refused (`gptoss_dist.checks`).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gptoss_dist.checks import FLASH3, attention_named
from gptoss_dist.errors import KernelError
from gptoss_dist.kernels.step_kernels import CUDA, REFERENCE, TRITON
from gptoss_dist.schema.kernels import ExpertKernel, KernelsConf

_EXPERTS: dict[ExpertKernel, str] = {
    ExpertKernel.reference: "gptoss_dist.kernels.experts_reference",
    ExpertKernel.triton: "gptoss_dist.kernels.experts_triton",
    ExpertKernel.cuda: "gptoss_dist.kernels.experts_cuda",
    ExpertKernel.hub: "gptoss_dist.kernels.experts_hub",
}
"""Expert kernel → module; each has `unavailable(device) -> str | None` and `install(module) -> None`.

`install` sets `kernel` of a `PackedGptOssExperts` to a function like `experts_reference.experts_forward`, and
`rows_kernel` to one like `experts_triton.expert_rows`, or to None where there is none.
"""

CAPTURABLE = (ExpertKernel.cuda, ExpertKernel.triton)
"""Those that read nothing back from the device, so a step can be a CUDA graph; `auto` takes the first that can run."""

_SPOKEN = {ExpertKernel.cuda: "CUDA", ExpertKernel.triton: "Triton"}


@dataclass(frozen=True)
class Chosen:
    """What runs, and for `auto` the reason in one line."""

    attention: str
    experts: ExpertKernel
    reason: str
    step: str = REFERENCE
    """What the engine's own step is made of (`step_kernels`); empty where an attention was asked for that it lacks."""
    step_reason: str = ""


def choose_kernels(conf: KernelsConf, device: torch.device, packed: bool) -> Chosen:
    """Turn `auto` into names. Raises KernelError when something asked for by name cannot run here.

    Raises ConfigError for an attention that is not known to keep the sinks.
    """
    attention, why_attention = _choose_attention(conf.attention, device)
    step, why_step = _choose_step(conf, device)
    if not packed:
        if conf.experts in (ExpertKernel.hub, *CAPTURABLE):
            raise KernelError(
                f"kernels.experts={conf.experts.value} multiplies packed MXFP4 weights, and there are none here: the "
                "checkpoint has none, or model.dequantize=true unpacked them. Drop it."
            )
        return Chosen(attention, ExpertKernel.reference, why_attention, step, why_step)
    experts, why_experts = _choose_experts(conf.experts, device)
    reason = "; ".join(part for part in (why_attention, why_experts) if part)
    return Chosen(attention, experts, reason, step, why_step)


def use_expert_kernel(model: Any, chosen: Chosen) -> None:
    """Hand the packed experts of a loaded model to the chosen kernel."""
    install: Callable[[Any], None] = importlib.import_module(_EXPERTS[chosen.experts]).install
    for module in model.modules():
        if hasattr(module, "gate_up_proj_blocks"):
            install(module)


def _choose_attention(wanted: str, device: torch.device) -> tuple[str, str]:
    if wanted != "auto":
        name = attention_named(wanted)
        if name == FLASH3 and (problem := _flash3_problem(device)):
            raise KernelError(f"kernels.attention={wanted}: {problem}. kernels.attention=eager runs anywhere.")
        return name, ""
    problem = _flash3_problem(device)
    return (FLASH3, "attention: flash-attention 3") if problem is None else ("eager", f"attention: eager ({problem})")


def _choose_step(conf: KernelsConf, device: torch.device) -> tuple[str, str]:
    """What backend=engine computes with, and why; it has attention kernels of its own and takes no others."""
    if conf.attention == "eager":
        return REFERENCE, ""
    if conf.attention != "auto":
        return "", f"kernels.attention={conf.attention} is not one of them"
    if problem := _expert_problem(ExpertKernel.triton, device):
        return REFERENCE, f"plain torch ({problem})"
    if conf.experts is ExpertKernel.triton:  # asked for by name, to do without a compiler of CUDA C++
        return TRITON, "built-in Triton kernels"
    if problem := _expert_problem(ExpertKernel.cuda, device):
        return TRITON, f"built-in Triton kernels, none in CUDA C++ ({problem})"
    return CUDA, "built-in Triton and CUDA kernels"


def _flash3_problem(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "flash-attention 3 needs a GPU"
    if torch.cuda.get_device_capability(device)[0] != 9:
        return f"flash-attention 3 needs a Hopper GPU, and this is {torch.cuda.get_device_name(device)}"
    from gptoss_dist.kernels.hub import problem_of

    return problem_of(FLASH3)


def _choose_experts(wanted: ExpertKernel, device: torch.device) -> tuple[ExpertKernel, str]:
    if wanted is not ExpertKernel.auto:
        if problem := _expert_problem(wanted, device):
            raise KernelError(f"kernels.experts={wanted.value}: {problem}. kernels.experts=reference runs anywhere.")
        return wanted, ""
    problems: list[str] = []
    for kernel in CAPTURABLE:
        problem = _expert_problem(kernel, device)
        if problem is None:
            why = f" ({problems[0]})" if problems else ""
            return kernel, f"experts: built-in {_SPOKEN[kernel]} kernels{why}"
        problems.append(problem)
    return ExpertKernel.reference, f"experts: plain torch ({problems[-1]})"


def _expert_problem(kernel: ExpertKernel, device: torch.device) -> str | None:
    if kernel in CAPTURABLE and importlib.util.find_spec("triton") is None:
        return "the package `triton` is not installed"
    problem: str | None = importlib.import_module(_EXPERTS[kernel]).unavailable(device)
    return problem
