from __future__ import annotations

import inspect

import pytest
import torch

from gptoss_dist.errors import KernelError
from gptoss_dist.kernels import attention_reference, attention_tables_reference
from gptoss_dist.kernels.registry import choose_kernels
from gptoss_dist.kernels.step_kernels import StepKernels, step_kernels
from gptoss_dist.schema.kernels import ExpertKernel, KernelsConf

CPU = torch.device("cpu")
FUSED = ("begin_attention", "end_attention")
PARTS = [name for name in StepKernels.__dataclass_fields__ if name not in ("name", *FUSED)]


def test_both_tables_are_whole_and_their_functions_take_the_same():
    reference, triton = step_kernels("reference"), step_kernels("triton")
    for part in PARTS:
        wanted = list(inspect.signature(getattr(reference, part)).parameters)
        assert list(inspect.signature(getattr(triton, part)).parameters)[: len(wanted)] == wanted, part
    assert (reference.capturable, triton.capturable) == (False, True)
    assert {getattr(reference, part) for part in FUSED} == {None}
    assert all(getattr(triton, part) is not None for part in FUSED)


def test_the_table_of_cuda_is_tritons_but_for_the_projections():
    triton, cuda = step_kernels("triton"), step_kernels("cuda")
    other = {part for part in (*PARTS, *FUSED) if getattr(triton, part) is not getattr(cuda, part)}
    assert other == {"project", "begin_attention", "end_attention"}
    assert cuda.end_attention.keywords == {"project_few": cuda.project}
    assert (cuda.capturable, cuda.compiled, triton.compiled) == (True, True, False)


@pytest.mark.parametrize(
    ("attention", "wanted"),
    [
        ("auto", ("reference", "plain torch (the built-in Triton kernels need a GPU)")),
        ("eager", ("reference", "")),
    ],
)
def test_on_a_cpu_the_step_is_plain_torch(attention, wanted):
    chosen = choose_kernels(KernelsConf("test", attention, ExpertKernel.auto), CPU, packed=True)
    assert (chosen.step, chosen.step_reason) == wanted


def test_on_a_gpu_auto_takes_triton(monkeypatch):
    monkeypatch.setattr("gptoss_dist.kernels.registry._expert_problem", lambda kernel, device: None)
    monkeypatch.setattr("gptoss_dist.kernels.registry._flash3_problem", lambda device: None)
    auto = choose_kernels(KernelsConf("test"), torch.device("cuda"), packed=True)
    assert (auto.step, auto.step_reason) == ("cuda", "built-in Triton and CUDA kernels")
    by_name = choose_kernels(KernelsConf("test", experts=ExpertKernel.triton), torch.device("cuda"), packed=True)
    assert (by_name.step, by_name.step_reason) == ("triton", "built-in Triton kernels")
    monkeypatch.setattr(
        "gptoss_dist.kernels.registry._expert_problem",
        lambda kernel, device: "no compiler" if kernel is ExpertKernel.cuda else None,
    )
    without = choose_kernels(KernelsConf("test"), torch.device("cuda"), packed=True)
    assert (without.step, without.step_reason) == ("triton", "built-in Triton kernels, none in CUDA C++ (no compiler)")
    named = choose_kernels(KernelsConf("test", "vllm-flash-attn3"), torch.device("cuda"), packed=True)
    with pytest.raises(KernelError, match=r"kernels.attention=vllm-flash-attn3 is not one of them. Take kernels.atten"):
        step_kernels(named.step, named.step_reason)


def test_an_unknown_table_is_refused():
    with pytest.raises(KernelError, match="'fast' is not one of them"):
        step_kernels("fast")


def cached(pages: int = 9, page_size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(pages, page_size, 2, 8, generator=generator) for _ in range(2))


@pytest.mark.parametrize("window", [None, 5])
def test_tables_on_the_device_say_what_spans_say(window):
    key, value = cached()
    query, sinks = torch.randn(7, 6, 8), torch.randn(6)
    table = torch.tensor([[3, 1, 0], [8, 2, -1]], dtype=torch.int32)
    spans = [attention_reference.Span(0, 4, 7, (3, 1, 0)), attention_reference.Span(4, 3, 2, (8, 2))]
    wanted = attention_reference.paged_attention(query, key, value, spans, sinks, window)
    numbers = (torch.tensor([0, 4]), torch.tensor([4, 3]), torch.tensor([7, 2]))
    found = attention_tables_reference.prefill_attention(query, key, value, table, *numbers, sinks, window, 4)
    assert torch.equal(found, wanted)
    last = torch.tensor([10, 4, -1], dtype=torch.int32)
    rows = torch.stack((query[3], query[6], torch.full_like(query[0], torch.nan)))
    padded = torch.cat((table, torch.full((1, 3), -1, dtype=torch.int32)))
    single = attention_tables_reference.decode_attention(rows, key, value, padded, last, sinks, window)
    torch.testing.assert_close(single[:2], wanted[[3, 6]])
    assert (single[2] == 0).all()
