from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import GptOssConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from gptoss_dist.kernels import experts_reference
from gptoss_dist.kernels.experts_reference import experts_forward, install, swiglu, unavailable
from gptoss_dist.kernels.packed import PackedExperts

EXPERTS, HIDDEN, GROUPS, TOP_K = 6, 64, 5, 2
INTERMEDIATE = 32 * GROUPS
BOTH_WAYS = pytest.mark.parametrize("tokens", [1, 8, 9, 50])
"""Route by route up to 8 tokens of two routes, expert by expert above."""


@pytest.fixture(scope="module")
def packed() -> PackedExperts:
    chance = torch.Generator().manual_seed(1)

    def some_bytes(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, dtype=torch.uint8, generator=chance)

    return PackedExperts(
        gate_up_blocks=some_bytes(0, 256, EXPERTS, GROUPS, 64, HIDDEN // 32, 16),
        gate_up_scales=some_bytes(122, 127, EXPERTS, GROUPS, 64, HIDDEN // 32),
        gate_up_bias=torch.randn(EXPERTS, GROUPS, 64, generator=chance),
        down_blocks=some_bytes(0, 256, EXPERTS, HIDDEN, GROUPS, 16),
        down_scales=some_bytes(120, 124, EXPERTS, HIDDEN, GROUPS),
        down_bias=torch.randn(EXPERTS, HIDDEN, generator=chance),
        alpha=1.702,
        limit=7.0,
    )


@pytest.fixture(scope="module")
def upstream(packed: PackedExperts) -> GptOssExperts:
    """transformers' own experts with the same weights, unpacked by transformers."""
    config = GptOssConfig(
        num_local_experts=EXPERTS, hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, experts_implementation="eager"
    )
    module = GptOssExperts(config)
    gate_up = (packed.gate_up_blocks.flatten(1, 2), packed.gate_up_scales.flatten(1, 2))
    weights = {
        "gate_up_proj": convert_moe_packed_tensors(*gate_up, dtype=torch.float32),
        "gate_up_proj_bias": packed.gate_up_bias.flatten(1),
        "down_proj": convert_moe_packed_tensors(packed.down_blocks, packed.down_scales, dtype=torch.float32),
        "down_proj_bias": packed.down_bias,
    }
    module.load_state_dict(weights)
    return module


def routes(tokens: int, experts: int = EXPERTS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states large enough that the clamp of SwiGLU is reached, expert ids, and weights."""
    chance = torch.Generator().manual_seed(tokens)
    hidden_TH = 2 * torch.randn(tokens, HIDDEN, generator=chance)
    index_TK = torch.rand(tokens, experts, generator=chance).argsort(dim=1)[:, :TOP_K]
    weight_TK = torch.randn(tokens, TOP_K, generator=chance).softmax(dim=1)
    return hidden_TH, index_TK, weight_TK


def part(packed: PackedExperts, start: int, stop: int) -> PackedExperts:
    """The groups from `start` to `stop` of every expert; the bias of `down_proj` belongs to the first."""
    return replace(
        packed,
        gate_up_blocks=packed.gate_up_blocks[:, start:stop],
        gate_up_scales=packed.gate_up_scales[:, start:stop],
        gate_up_bias=packed.gate_up_bias[:, start:stop],
        down_blocks=packed.down_blocks[:, :, start:stop],
        down_scales=packed.down_scales[:, :, start:stop],
        down_bias=packed.down_bias if start == 0 else torch.zeros_like(packed.down_bias),
    )


def only(packed: PackedExperts, start: int, stop: int) -> PackedExperts:
    """The experts from `start` to `stop`."""
    fields = ("gate_up_blocks", "gate_up_scales", "gate_up_bias", "down_blocks", "down_scales", "down_bias")
    return replace(packed, **{name: getattr(packed, name)[start:stop] for name in fields})


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((found - wanted).norm() <= 1e-5 * wanted.norm())


def test_swiglu_is_transformers_own_gate(upstream: GptOssExperts):
    gate_up = 8 * torch.randn(20, 2 * INTERMEDIATE, generator=torch.Generator().manual_seed(0))
    assert (gate_up.abs() > 7).any()
    assert torch.allclose(swiglu(gate_up, 1.702, 7.0), upstream._apply_gate(gate_up), rtol=1e-5, atol=1e-6)


@BOTH_WAYS
@torch.no_grad()
def test_it_computes_what_transformers_computes(packed: PackedExperts, upstream: GptOssExperts, tokens: int):
    hidden_TH, index_TK, weight_TK = routes(tokens)
    found = experts_forward(hidden_TH, index_TK, weight_TK, packed)
    assert found.shape == hidden_TH.shape
    assert close(found, upstream(hidden_TH, index_TK, weight_TK))


@BOTH_WAYS
def test_both_ways_give_the_same(packed: PackedExperts, monkeypatch, tokens: int):
    one = experts_forward(*routes(tokens), packed)
    monkeypatch.setattr(experts_reference, "_FEW_ROUTES", 0 if tokens <= 8 else 1000)
    assert close(experts_forward(*routes(tokens), packed), one)


@BOTH_WAYS
@pytest.mark.parametrize("cut", [1, 3])
def test_slices_add_up_to_the_whole(packed: PackedExperts, tokens: int, cut: int):
    inputs = routes(tokens)
    summed = experts_forward(*inputs, part(packed, 0, cut)) + experts_forward(*inputs, part(packed, cut, GROUPS))
    assert close(summed, experts_forward(*inputs, packed))


@BOTH_WAYS
@pytest.mark.parametrize("marked", ["above", "negative"])
def test_dealt_out_experts_add_up_to_the_whole(packed: PackedExperts, tokens: int, marked: str):
    hidden_TH, index_TK, weight_TK = routes(tokens)
    summed = torch.zeros_like(hidden_TH)
    for start, stop in ((0, 2), (2, 6)):
        here_TK = (index_TK >= start) & (index_TK < stop)
        foreign = stop - start if marked == "above" else -1
        mine_TK = torch.where(here_TK, index_TK - start, foreign)
        summed += experts_forward(hidden_TH, mine_TK, weight_TK, only(packed, start, stop))
    assert close(summed, experts_forward(hidden_TH, index_TK, weight_TK, packed))


@BOTH_WAYS
def test_routes_to_other_ranks_alone_give_zeros(packed: PackedExperts, tokens: int):
    hidden_TH, index_TK, weight_TK = routes(tokens)
    found = experts_forward(hidden_TH, torch.full_like(index_TK, EXPERTS), weight_TK, packed)
    assert torch.equal(found, torch.zeros_like(hidden_TH))


def test_no_tokens(packed: PackedExperts):
    hidden_TH, index_TK, weight_TK = routes(4)
    assert experts_forward(hidden_TH[:0], index_TK[:0], weight_TK[:0], packed).shape == (0, HIDDEN)


@BOTH_WAYS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_answer_has_the_dtype_of_the_activations(packed: PackedExperts, tokens: int, dtype: torch.dtype):
    hidden_TH, index_TK, weight_TK = routes(tokens)
    rounded = replace(packed, gate_up_bias=packed.gate_up_bias.to(dtype), down_bias=packed.down_bias.to(dtype))
    found = experts_forward(hidden_TH.to(dtype), index_TK, weight_TK.to(dtype), rounded)
    wanted = experts_forward(hidden_TH, index_TK, weight_TK, packed)
    assert found.dtype == dtype
    assert (found.float() - wanted).norm() <= 0.02 * wanted.norm()


def test_it_runs_everywhere_and_installs_itself(packed: PackedExperts):
    class Module:
        kernel = None

    module = Module()
    install(module)
    assert module.kernel is experts_forward
    assert module.rows_kernel is None
    assert unavailable(torch.device("cpu")) is unavailable(torch.device("cuda")) is None
