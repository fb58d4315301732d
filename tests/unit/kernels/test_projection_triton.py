from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

import torch
from interpreted import interpreted
from kernel_compile import compile_kernel

from gptoss_dist.kernels import projection_reference, projection_triton
from gptoss_dist.kernels.projection_tiles import candidates_few, candidates_one


@interpreted
def test_the_kernels_compute_what_float64_computes():
    for dtype in (torch.float32, torch.float16):
        for tokens in (0, 1, 2, 16, 17):
            for rows, columns in ((5, 24), (40, 200)):
                x_TC = torch.randn(tokens, columns + 8).to(dtype)[:, :columns]
                weight_OC = torch.randn(rows, columns).to(dtype)
                for bias_O in (None, torch.randn(rows).to(dtype)):
                    for residual_TO in (None, torch.randn(tokens, rows).to(dtype)):
                        operands = (x_TC, weight_OC, bias_O, residual_TO)
                        wide = [None if part is None else part.double() for part in operands]
                        wanted = projection_reference.project(*wide)
                        found = projection_triton.project(*operands)
                        assert residual_TO is None or found is residual_TO
                        assert found.dtype == dtype
                        bound = 4 * torch.finfo(dtype).eps
                        torch.testing.assert_close(found.double(), wanted, rtol=bound, atol=4 * bound * columns**0.5)


@interpreted
def test_all_block_shapes_compute_the_same():
    rows, columns = 40, 200
    weight_OC, bias_O = torch.randn(rows, columns), torch.randn(rows)
    for tokens in (1, 3):
        x_TC = torch.randn(tokens, columns)
        wanted = projection_reference.project(x_TC, weight_OC, bias_O)
        shapes = candidates_one if tokens == 1 else candidates_few
        for shape in shapes:
            found = projection_triton.project(x_TC, weight_OC, bias_O, **{"one" if tokens == 1 else "few": shape})
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


def compiled(tokens, tile, columns, capability=90, dependent=False):
    pointers = ("x", "weight", "bias", "out")
    numbers = ("rows", "weight_stride") + (("tokens", "x_stride", "out_stride") if tokens > 1 else ())
    made = projection_triton.one_options(tile) if tokens == 1 else projection_triton.few_options(tile, tokens)
    options = {name: made.pop(name) for name in ("num_warps", "num_stages") if name in made}
    constants = {"COLUMNS": columns, "HAS_BIAS": True, "HAS_RESIDUAL": True, "DEPENDENT": dependent, **made}
    return compile_kernel(
        getattr(projection_triton, f"_project_{'one' if tokens == 1 else 'few'}_kernel"),
        dict.fromkeys(pointers, "*bf16") | dict.fromkeys(numbers, "i32"),
        constants,
        capability,
        aligned=(*pointers, *(name for name in numbers if name != "tokens")),
        **options,
        **({"launch_pdl": True} if dependent else {}),
    )


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("columns", [2880, 4096, 512], ids=["qkv", "out", "an eighth of out"])
@pytest.mark.parametrize("tokens", [1, 8, 16])
def test_nothing_spills_at_the_models_width(capability, columns, tokens):
    tile = candidates_one[0] if tokens == 1 else candidates_few[0]
    made = compiled(tokens, tile, columns, capability)
    assert made.spilled_bytes == 0
    assert "griddepcontrol" not in made.ptx
    assert ("ld.global.v4.b32" if tokens == 1 else "cp.async.cg.shared.global") in made.ptx
    assert ("mma.sync" in made.ptx) == (tokens > 1)


@pytest.mark.parametrize("tile", candidates_one)
def test_one_token_has_all_weights_under_way_before_it_waits(tile):
    made = compiled(1, tile, 4096, dependent=True)
    assert made.spilled_bytes == 0
    before, after = made.ptx.split("griddepcontrol.wait")
    assert before.count("ld.global.v4.b32") == tile.rows * 4096 // (tile.warps * 32 * 8)
    assert "griddepcontrol.launch_dependents" in before
    assert "st.global" not in before
    assert "griddepcontrol" not in after
