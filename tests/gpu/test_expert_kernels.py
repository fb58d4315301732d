"""Every expert kernel at gpt-oss's own widths, in bfloat16, against the reference in float32 on the same weights."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch

from gptoss_dist.kernels import experts_reference, hub
from gptoss_dist.kernels.packed import PackedExperts

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

EXPERTS, HIDDEN, TOP_K = 16, 2880, 4
BOUND = 8e-3
"""‖found − wanted‖ / ‖wanted‖: activations and inner activations are rounded to bfloat16 (2^-9 each) on the way."""


def random_experts(groups: int) -> PackedExperts:
    def some_bytes(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, dtype=torch.uint8, device="cuda")

    return PackedExperts(
        gate_up_blocks=some_bytes(0, 256, EXPERTS, groups, 64, HIDDEN // 32, 16),
        gate_up_scales=some_bytes(118, 124, EXPERTS, groups, 64, HIDDEN // 32),
        gate_up_bias=torch.randn(EXPERTS, groups, 64, device="cuda").bfloat16(),
        down_blocks=some_bytes(0, 256, EXPERTS, HIDDEN, groups, 16),
        down_scales=some_bytes(118, 124, EXPERTS, HIDDEN, groups),
        down_bias=torch.randn(EXPERTS, HIDDEN, device="cuda").bfloat16(),
        alpha=1.702,
        limit=7.0,
    )


def kernel_named(name: str, packed: PackedExperts):
    if name == "hub" and (problem := hub.problem_of(hub.EXPERTS)):
        pytest.skip(problem)
    module = SimpleNamespace(
        gate_up_proj_blocks=packed.gate_up_blocks,
        gate_up_proj_scales=packed.gate_up_scales,
        down_proj_blocks=packed.down_blocks,
        down_proj_scales=packed.down_scales,
        alpha=packed.alpha,
        limit=packed.limit,
    )
    importlib.import_module(f"gptoss_dist.kernels.experts_{name}").install(module)
    return module.kernel


@pytest.mark.parametrize("groups", [90, 23, 21], ids=["whole", "first of 4 slices", "last of 4 slices"])
@pytest.mark.parametrize("tokens", [1, 3, 64, 700])
@pytest.mark.parametrize("name", ["reference", "triton", "hub"])
def test_a_kernel_computes_what_the_reference_computes(name, tokens, groups):
    packed = random_experts(groups)
    hidden_TH = torch.randn(tokens, HIDDEN, device="cuda").bfloat16()
    index_TK = torch.rand(tokens, EXPERTS + 4, device="cuda").argsort(dim=1)[:, :TOP_K]
    weight_TK = torch.randn(tokens, TOP_K, device="cuda").softmax(dim=1).bfloat16()
    found = kernel_named(name, packed)(hidden_TH, index_TK, weight_TK, packed)
    wanted = experts_reference.experts_forward(hidden_TH.float(), index_TK, weight_TK.float(), packed)
    assert found.dtype == torch.bfloat16
    assert (found.float() - wanted).norm() / wanted.norm() < BOUND
