from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from gptoss_dist.checks import FLASH3
from gptoss_dist.errors import ConfigError, KernelError
from gptoss_dist.kernels.experts_reference import experts_forward
from gptoss_dist.kernels.registry import Chosen, choose_kernels, use_expert_kernel
from gptoss_dist.schema.kernels import ExpertKernel, KernelsConf

CPU = torch.device("cpu")
GUIDE = "vllm-flash-attn3:flash_attn_varlen_func"


def chosen(attention: str = "auto", experts: str = "auto", packed: bool = True) -> Chosen:
    return choose_kernels(KernelsConf("test", attention, ExpertKernel(experts)), CPU, packed)


def refusal(attention: str = "eager", experts: str = "reference", packed: bool = True) -> str:
    with pytest.raises(KernelError) as caught:
        chosen(attention, experts, packed)
    return str(caught.value)


def test_auto_on_a_cpu_is_eager_and_plain_torch_and_says_why():
    found = chosen()
    assert (found.attention, found.experts) == ("eager", ExpertKernel.reference)
    assert found.reason == (
        "attention: eager (flash-attention 3 needs a GPU); experts: plain torch (the built-in Triton kernels need a "
        "GPU)"
    )


def test_what_was_asked_for_by_name_needs_no_reason():
    assert chosen("eager", "reference") == Chosen("eager", ExpertKernel.reference, "")


@pytest.mark.parametrize("name", ["sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "Eager", ""])
def test_attention_without_sinks_is_refused_with_the_known_names(name: str):
    with pytest.raises(ConfigError) as caught:
        chosen(attention=name)
    message = str(caught.value)
    assert message.startswith(f"kernels.attention={name}: not known to keep gpt-oss's attention sinks. Known: auto, ")
    for known in ("eager", FLASH3, GUIDE):
        assert known in message


@pytest.mark.parametrize("name", [FLASH3, "vllm-flash-attn3", GUIDE, f"{FLASH3}:flash_attn_varlen_func"])
def test_every_spelling_of_flash_attention_is_known_and_needs_a_gpu(name: str):
    assert refusal(attention=name) == (
        f"kernels.attention={name}: flash-attention 3 needs a GPU. kernels.attention=eager runs anywhere."
    )


@pytest.mark.parametrize("name", ["hub", "triton", "cuda"])
def test_expert_kernels_for_gpus_are_refused_on_a_cpu(name: str):
    message = refusal(experts=name)
    assert message.startswith(f"kernels.experts={name}: ")
    assert message.endswith("a GPU. kernels.experts=reference runs anywhere.") or "not installed" in message


@pytest.mark.parametrize("name", ["hub", "triton", "cuda"])
def test_kernels_for_packed_experts_are_refused_without_any(name: str):
    assert refusal(experts=name, packed=False) == (
        f"kernels.experts={name} multiplies packed MXFP4 weights, and there are none here: the checkpoint has none, "
        "or model.dequantize=true unpacked them. Drop it."
    )


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_dense_experts_are_transformers_own(name: str):
    found = chosen("eager", name, packed=False)
    assert found.experts is ExpertKernel.reference
    assert "experts" not in found.reason


def test_a_choice_is_final():
    with pytest.raises(dataclasses.FrozenInstanceError):
        chosen().attention = "sdpa"  # type: ignore[misc]


def test_the_kernel_is_handed_to_packed_experts_and_to_nothing_else():
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj_blocks = nn.Parameter(torch.zeros(1, dtype=torch.uint8), requires_grad=False)
            self.kernel = None

    model = nn.ModuleList([nn.Linear(2, 2), Packed(), nn.ModuleList([Packed()])])
    use_expert_kernel(model, chosen())
    assert model[1].kernel is model[2][0].kernel is experts_forward
    assert model[1].rows_kernel is model[2][0].rows_kernel is None
    assert not hasattr(model[0], "kernel")
