"""The grouped CUDA expert kernels: their own code compiled for the CPU (`cuda/host.h`), against the reference."""

from __future__ import annotations

import ctypes
import time

import pytest
import torch
from cuda_on_cpu import compile_for_cpu, disassembly, pointer, resources
from packed_experts import interleaved, listed_tiles, random_experts
from wgmma_operands import overwritten_operands

from gptoss_dist.kernels import cuda_program, experts_reference
from gptoss_dist.kernels.experts_grouped import FILES, Ring, fewest_tokens, rings

BLOCKS = 2
EXPERTS = 4
BOUND = {torch.float32: 8e-3, torch.bfloat16: 1e-2}
"""‖found − wanted‖ / ‖wanted‖: activations and inner activations are rounded to bfloat16 (2^-9 each), rows too."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> ctypes.CDLL:
    return compile_for_cpu("experts_grouped_host.cpp", tmp_path_factory.mktemp("host"))


def rows_of(compiled, ring: Ring, packed, hidden_TH, index_P, weight_P, dtype: torch.dtype) -> torch.Tensor:
    """What each route gives; zeros for those of other ranks, which nobody wrote."""
    groups, (tokens, hidden), routes = packed.gate_up_bias.shape[1], hidden_TH.shape, index_P.numel()
    order, expert, first, count = listed_tiles(index_P, EXPERTS, ring.columns)
    gathered, inner = (
        torch.full(((columns + 1) // 2, routes, 64), torch.nan).bfloat16() for columns in (hidden // 32, groups)
    )
    rows_PH = torch.full((routes, hidden), torch.nan, dtype=dtype)

    def run(part: int, x, out) -> None:
        name = "down" if part == 2 else "gate_up"
        weights = [getattr(packed, f"{name}_{one}") for one in ("blocks", "scales", "bias")]
        contracted, rows = (groups, hidden) if part == 2 else (hidden // 32, 64 * groups)
        done = compiled.run(
            part, contracted, ring.stages, ring.columns, int(dtype == torch.float32), BLOCKS, ring.shared_bytes(),
            *map(pointer, (x, order, expert, first, count, *weights, weight_P, out)),
            routes, expert.numel(), routes // tokens, rows, ctypes.c_float(1.702), ctypes.c_float(7.0),
        )  # fmt: skip
        assert done, "no such instance in experts_grouped_host.cpp"

    run(0, hidden_TH, gathered)
    run(1, gathered, inner)
    run(2, inner, rows_PH)
    here = index_P < EXPERTS
    assert rows_PH[~here].isnan().all(), "a route of another rank was written"
    rows_PH[~here] = 0.0
    return rows_PH.float()


RINGS = [(Ring(128, 2), 9, 6), (Ring(64, 3), 10, 11)]
"""Ring, groups of the hidden size, groups of the inner size."""


@pytest.mark.parametrize(("ring", "hidden_groups", "groups"), RINGS, ids=["a ring of two", "a ring of three"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_what_the_reference_computes(compiled, ring, hidden_groups, groups, dtype):
    """288 to 704 rows: items whose last rows are not there. Experts of 3, 40, 90 and 150 routes: every width."""
    seed = time.time_ns() % 2**31
    print(f"seed {seed}")
    torch.manual_seed(seed)
    plain = random_experts(EXPERTS, hidden_groups, groups)
    tokens, top_k = 152, 2
    experts = [0] * 3 + [1] * 40 + [2] * 90 + [3] * 150 + [EXPERTS] * 21  # the last of another rank
    index_P = torch.tensor(experts, dtype=torch.int32)[torch.randperm(2 * tokens)]
    weight_P = torch.rand(tokens * top_k)
    hidden_TH = torch.randn(tokens, 32 * hidden_groups).bfloat16()
    rows_PH = rows_of(compiled, ring, interleaved(plain), hidden_TH, index_P, weight_P, dtype)
    found = rows_PH.view(tokens, top_k, -1).sum(dim=1)
    wanted = experts_reference.experts_forward(
        hidden_TH.float(), index_P.view(tokens, top_k).long(), weight_P.view(tokens, top_k), plain
    )
    assert float((found - wanted).norm() / wanted.norm()) < BOUND[dtype]


def test_what_is_no_number_stays_none_and_touches_no_other_token(compiled):
    ring, hidden_groups, groups = RINGS[0]
    packed = interleaved(random_experts(EXPERTS, hidden_groups, groups))
    hidden_TH = torch.randn(40, 32 * hidden_groups).bfloat16()
    hidden_TH[7, 100] = torch.nan
    index_P = torch.randint(EXPERTS, (80,), dtype=torch.int32)
    rows_TKH = rows_of(compiled, ring, packed, hidden_TH, index_P, torch.ones(80), torch.float32).view(40, 2, -1)
    assert rows_TKH[7].isnan().all()
    assert rows_TKH[torch.arange(40) != 7].isfinite().all()


def test_the_machine_code_keeps_operands_and_does_not_spill(tmp_path):
    """As Hopper would get it, at the widths of gpt-oss whole, in halves, quarters and eighths."""
    if problem := cuda_program.missing():
        pytest.skip(problem)
    cuts = [(90, groups, False) for groups in (90, 45, 23, 12)] + [(90, 90, True)]
    names = dict.fromkeys(name for cut in cuts for ring in rings(1.0) for name in ring.names_of(*cut))
    code, _ = cuda_program.compile_cubin(cuda_program.source_of(*FILES), list(names), (9, 0))
    made = tmp_path / "experts.cubin"
    made.write_bytes(code)
    for name, usage in resources(made).items():
        assert usage["STACK"] <= 32, name
        assert usage["LOCAL"] == 0, name
    text = disassembly(made)
    assert "HGMMA" in text
    assert not overwritten_operands(text)
    assert all(ring.shared_bytes() <= 227 << 10 for ring in rings(1.0))


def test_experts_of_few_routes_have_a_ring_of_narrow_steps():
    (many,) = fewest_tokens(4, 128)
    assert rings((many - 1) * 4 / 128)[0].columns == 64
    assert rings(many * 4 / 128)[0].columns == 128
