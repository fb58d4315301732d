"""The CUDA expert kernels: their own code compiled for the CPU (`cuda/host.h`), against the reference in float32."""

from __future__ import annotations

import ctypes
import time
from dataclasses import replace

import pytest
import torch
from cuda_on_cpu import compile_for_cpu, pointer, resources
from packed_experts import interleaved, listed_tiles, random_experts
from transformers import GptOssConfig

from gptoss_dist.errors import KernelError
from gptoss_dist.kernels import cuda_program, experts_reference
from gptoss_dist.kernels.experts_shapes import Shape, candidates
from gptoss_dist.model.experts import PackedGptOssExperts

BOUND = 8e-3
"""‖found − wanted‖ / ‖wanted‖: activations and inner activations are rounded to bfloat16 (2^-9 each) on the way."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> ctypes.CDLL:
    return compile_for_cpu("experts_stream_host.cpp", tmp_path_factory.mktemp("host"))


class Case:
    """One call of both projections on the CPU."""

    def __init__(self, compiled, shape: Shape, experts: int, hidden_groups: int, groups: int) -> None:
        self.compiled, self.shape, self.experts = compiled, shape, experts
        self.hidden_groups, self.groups = hidden_groups, groups
        self.plain = random_experts(experts, hidden_groups, groups)
        self.packed = interleaved(self.plain)
        self.ready = torch.zeros(65, dtype=torch.int32)

    def rows(self, hidden_TH, index_TK, weight_TK, with_list: bool) -> torch.Tensor:
        """What each route gives; zeros for those of other ranks, which nobody wrote."""
        index_P, top_k, packed = index_TK.reshape(-1).int(), index_TK.shape[1], self.packed
        listed = listed_tiles(index_P, self.experts, self.shape.columns) if with_list else None
        inner_PI = torch.full((index_P.numel(), 32 * self.groups), torch.nan).bfloat16()
        rows_PH = torch.full((index_P.numel(), hidden_TH.shape[1]), torch.nan)
        tensors = (
            *(hidden_TH, index_P, *(listed or [index_P] * 4)),
            *(packed.gate_up_blocks, packed.gate_up_scales, packed.gate_up_bias, inner_PI),
            *(packed.down_blocks, packed.down_scales, packed.down_bias, weight_TK, rows_PH, self.ready),
        )
        widest = max(self.hidden_groups, self.groups)
        done = self.compiled.run(
            self.shape.instance(self.hidden_groups, self.groups, with_list).encode(),
            (ctypes.c_void_p * len(tensors))(*map(pointer, tensors)),
            self.shape.shared_bytes(widest, self.shape.columns), index_P.numel(), self.experts,
            listed[1].numel() if listed else 0, top_k, ctypes.c_float(1.702), ctypes.c_float(7.0),
        )  # fmt: skip
        assert done, "no such instance in experts_stream_host.cpp"
        assert not self.ready.any(), "the next launch would not wait"
        here = index_P < self.experts
        assert rows_PH[~here].isnan().all(), "a route of another rank was written"
        rows_PH[~here] = 0.0
        return rows_PH

    def error(self, tokens: int, top_k: int, with_list: bool, experts_of_all: int) -> float:
        hidden_TH = torch.randn(tokens, 32 * self.hidden_groups).bfloat16()
        index_TK = torch.rand(tokens, experts_of_all).argsort(dim=1)[:, :top_k]
        weight_TK = torch.randn(tokens, top_k).softmax(dim=1)
        found = self.rows(hidden_TH, index_TK, weight_TK, with_list).view(tokens, top_k, -1).sum(dim=1)
        wanted = experts_reference.experts_forward(hidden_TH.float(), index_TK, weight_TK, self.plain)
        return float((found - wanted).norm() / wanted.norm())


SHAPES = [(Shape(1, 1, 4, 1, 2, 2), 9, 6), (Shape(2, 1, 4, 2, 1, 1), 9, 2), (Shape(1, 1, 8, 4, 2, 1), 22, 5)]
WIDE = [(Shape(1, 2, 4, 2, 1, 1), 9, 2), (Shape(2, 2, 4, 2, 2, 1), 10, 5)]
"""Shape, groups of the hidden size, groups of the inner size: no whole number of quads, or of steps ahead."""


@pytest.mark.parametrize(("shape", "hidden_groups", "groups"), SHAPES, ids=["a warp alone", "two", "four"])
@pytest.mark.parametrize(("tokens", "with_list"), [(1, False), (5, False), (21, True)])
def test_it_computes_what_the_reference_computes(compiled, shape, hidden_groups, groups, tokens, with_list):
    seed = time.time_ns() % 2**31
    print(f"seed {seed}")
    torch.manual_seed(seed)
    case = Case(compiled, shape, 3, hidden_groups, groups)
    top_k = 3 if tokens > 8 else 2  # 21 · 3 routes over four experts: more than a product's columns each
    assert case.error(tokens, top_k, with_list, experts_of_all=4) < BOUND


@pytest.mark.parametrize(("shape", "hidden_groups", "groups"), WIDE, ids=["a row tile", "two"])
@pytest.mark.parametrize("tokens", [3, 9, 27])
def test_two_tiles_of_columns_compute_what_the_reference_computes(compiled, shape, hidden_groups, groups, tokens):
    """Of 3 · 3 routes over four experts the second tile has nothing, of 27 · 3 one tile of 16 is not enough."""
    seed = time.time_ns() % 2**31
    print(f"seed {seed}")
    torch.manual_seed(seed)
    case = Case(compiled, shape, 3, hidden_groups, groups)
    assert case.error(tokens, 3, with_list=True, experts_of_all=4) < BOUND


@pytest.mark.parametrize("with_list", [False, True])
def test_what_is_no_number_stays_none_and_touches_no_other_token(compiled, with_list):
    case = Case(compiled, SHAPES[0][0], 3, *SHAPES[0][1:])
    hidden_TH = torch.randn(3, 32 * case.hidden_groups).bfloat16()
    hidden_TH[1, 5] = torch.nan
    index_TK = torch.tensor([[0, 1], [1, 2], [2, 1]])
    rows_TKH = case.rows(hidden_TH, index_TK, torch.ones(3, 2), with_list).view(3, 2, -1)
    assert rows_TKH[1].isnan().all()
    assert rows_TKH[[0, 2]].isfinite().all()


def test_the_weights_of_every_layer_have_counters_of_their_own():
    from gptoss_dist.kernels import experts_cuda

    config = GptOssConfig(num_local_experts=2, hidden_size=64, intermediate_size=64, swiglu_limit=7.0)
    layers = [PackedGptOssExperts(config) for _ in range(2)]
    for layer in layers:
        assert layer.packed().counters is None
        for scales in (layer.gate_up_proj_scales, layer.down_proj_scales):
            scales.zero_()
        experts_cuda.install(layer)
    first, second = (layer.packed().counters for layer in layers)
    assert first is not None
    assert second is not None
    assert first.data_ptr() != second.data_ptr()
    assert not first.any()
    assert layers[0].packed().counters is first, "nothing is made in a step"
    without = replace(layers[0].packed(), counters=None)
    hidden_TH, index_TK, weight_TK = torch.zeros(1, 64).bfloat16(), torch.zeros(1, 1).int(), torch.ones(1, 1)
    with pytest.raises(KernelError, match="call experts_cuda"):
        experts_cuda.expert_rows(hidden_TH, index_TK, weight_TK, without)


def test_no_instance_spills(tmp_path):
    """As Hopper would get them, at the widths of gpt-oss whole, in halves, quarters and eighths."""
    if problem := cuda_program.missing():
        pytest.skip(problem)
    names = [
        shape.instance(90, groups, listed)
        for shape in (candidates(*loaded)[0] for loaded in ((1, 0.1), (8, 0.3), (64, 2.0), (64, 8.0)))
        for groups in (90, 45, 23, 12)
        for listed in (False, True)
    ]
    from gptoss_dist.kernels.experts_cuda import FILES

    source = cuda_program.source_of(*FILES)
    code, found = cuda_program.compile_cubin(source, list(dict.fromkeys(names)), (9, 0))
    made = tmp_path / "experts.cubin"
    made.write_bytes(code)
    usages = resources(made)
    assert set(usages) == {name.decode() for name in found}
    for name, usage in usages.items():
        assert usage["STACK"] <= 32, name
        assert usage["LOCAL"] == 0, name
