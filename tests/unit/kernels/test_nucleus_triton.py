from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

import torch
from interpreted import interpreted
from kernel_compile import compile_kernel

from gptoss_dist.kernels import nucleus_reference, nucleus_triton
from gptoss_dist.kernels.nucleus_reference import WHOLE


def both(probabilities_KV, rows_N, top_p_N) -> tuple[torch.Tensor, torch.Tensor]:
    found_KV, wanted_KV = probabilities_KV.clone(), probabilities_KV.clone()
    nucleus_triton.keep_nucleus(found_KV, rows_N, top_p_N)
    nucleus_reference.keep_nucleus(wanted_KV, rows_N, top_p_N)
    return found_KV, wanted_KV


@interpreted
def test_the_same_tokens_stay_whatever_the_distribution():
    """Flat and steep ones, with ties and without, with and without tokens of probability 0, over one block and many."""
    nucleus_triton._COLUMNS = 32
    for columns in (1, 31, 32, 150):
        for heat in (0.01, 1.0, 30.0):
            logits_KV = torch.randn(9, columns) * heat
            logits_KV[::2] = logits_KV[::2].round()
            logits_KV[1:, ::5] = -torch.inf
            probabilities_KV = logits_KV.softmax(dim=1).nan_to_num_(0.25)
            rows_N = torch.randperm(9)[:6]
            top_p_N = (torch.rand(6).double() * WHOLE).long().clamp(min=1)
            top_p_N[0], top_p_N[1] = 1, WHOLE - 1
            found_KV, wanted_KV = both(probabilities_KV, rows_N, top_p_N)
            assert torch.equal(found_KV, wanted_KV)


@interpreted
def test_of_equal_tokens_the_lower_ids_stay_and_a_sum_that_is_reached_ends_it():
    nucleus_triton._COLUMNS = 8
    probabilities_KV = torch.full((5, 32), 1 / 32)
    top_p_N = torch.tensor([1, WHOLE // 32, WHOLE // 32 + 1, WHOLE // 2, WHOLE - 1])
    nucleus_triton.keep_nucleus(probabilities_KV, torch.arange(5), top_p_N)
    assert (probabilities_KV > 0).sum(dim=1).tolist() == [1, 1, 2, 16, 32]
    assert all(row[: int((row > 0).sum())].all() for row in probabilities_KV)


@interpreted
def test_one_certain_token_stays_and_a_row_without_numbers_too():
    nucleus_triton._COLUMNS = 8
    probabilities_KV = torch.zeros(3, 20)
    probabilities_KV[0, 13] = 1.0
    probabilities_KV[1], probabilities_KV[1, ::2] = torch.nan, -torch.nan
    found_KV, wanted_KV = both(probabilities_KV, torch.tensor([0, 1]), torch.tensor([WHOLE // 2, WHOLE // 2]))
    assert torch.equal(found_KV[[0, 2]], wanted_KV[[0, 2]])
    assert found_KV[1].isnan().all()


@interpreted
def test_what_is_no_number_counts_as_nothing_and_stays():
    nucleus_triton._COLUMNS = 8
    probabilities_KV = torch.rand(2, 20) / 10
    probabilities_KV[0, 3], probabilities_KV[1, 4] = torch.nan, -torch.nan
    found_KV, wanted_KV = both(probabilities_KV, torch.arange(2), torch.tensor([WHOLE // 2, WHOLE // 2]))
    torch.testing.assert_close(found_KV, wanted_KV, rtol=0, atol=0, equal_nan=True)


@interpreted
def test_no_row_asks():
    probabilities_KV = torch.full((2, 4), 0.25)
    nothing = torch.empty(0, dtype=torch.int64)
    nucleus_triton.keep_nucleus(probabilities_KV, nothing, nothing)
    assert bool((probabilities_KV == 0.25).all())


def test_the_kernels_compile_without_spills(tmp_path):
    """For gpt-oss's vocabulary: 99 blocks of columns."""
    signature = {"probabilities": "*fp32", **dict.fromkeys(("row_of", "top_p", "known", "known_before"), "*i64")}
    signature |= dict.fromkeys(("sums", "sums_before"), "*i64")
    signature |= dict.fromkeys(("columns", "rows", "blocks", "shift"), "i32")
    sizes = {"BITS": 3, "BLOCKS": 128, "COLUMNS": nucleus_triton._COLUMNS}
    for kernel, more in ((nucleus_triton._sum_kernel, {"FIRST": False}), (nucleus_triton._cut_kernel, {})):
        own = {name: kind for name, kind in signature.items() if name in kernel.arg_names}
        assert compile_kernel(kernel, own, sizes | more, tmp_path, num_warps=4).spilled_bytes == 0
