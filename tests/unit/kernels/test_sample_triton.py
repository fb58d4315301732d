from __future__ import annotations

from itertools import pairwise

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

import torch
import triton
import triton.language as tl
from interpreted import interpreted
from kernel_compile import compile_kernel

from gptoss_dist.kernels import sample_reference, sample_triton


@triton.jit
def _noise_kernel(seed, position, group, words, noise, COUNT: tl.constexpr):
    some = sample_triton.uniform_words(tl.load(seed), tl.load(position), tl.load(group) + tl.arange(0, COUNT))
    place = tl.arange(0, COUNT * 4)
    tl.store(words + place, some.to(tl.int64))
    tl.store(noise + place, sample_triton.gumbel(some))


@interpreted
def test_words_are_bit_equal_and_the_noise_nearly():
    for _ in range(4):
        seed, position = torch.randint(-(2**63), 2**63 - 1, (1,)), torch.randint(0, 2**31, (1,))
        group = torch.randint(0, 50000, (1,), dtype=torch.int32)
        words, noise = torch.empty(256, dtype=torch.int64), torch.empty(256)
        _noise_kernel[(1,)](seed, position, group, words, noise, COUNT=64)
        wanted = sample_reference.uniform_words(seed, position, 4 * group + torch.arange(256))
        assert torch.equal(words, wanted)
        torch.testing.assert_close(noise, sample_reference.gumbel(wanted), rtol=3e-6, atol=3e-6)


def sharded(logits_RV, edges, *parameters):
    parts = [sample_triton.best_of_shard(logits_RV[:, low:high], low, *parameters) for low, high in pairwise(edges)]
    return sample_triton.merge_shards(
        torch.stack([score for score, _ in parts]), torch.stack([part for _, part in parts])
    )


@interpreted
def test_the_kernels_choose_what_the_reference_chooses_however_the_vocabulary_is_cut():
    sample_triton._COLUMNS = 32
    rows, columns = 8, 150
    for dtype in (torch.float32, torch.float16):
        temperature_R = torch.tensor([0.0, 0.7, 1.0, 3.0]).repeat(2)
        seed_R = torch.randint(-(2**63), 2**63 - 1, (rows,))
        given = (temperature_R, seed_R, torch.randint(0, 131072, (rows,)))
        logits_RV = (torch.randint(-8, 8, (rows, columns)) / 4).to(dtype)
        logits_RV[:, ::7] = -torch.inf
        wanted_score_R, wanted_R = sample_reference.best_of_shard(logits_RV, 0, *given)
        score_R, token_R = sample_triton.best_of_shard(logits_RV, 0, *given)
        torch.testing.assert_close(score_R, wanted_score_R, rtol=1e-5, atol=1e-5)
        assert torch.equal(token_R, wanted_R)
        for edges in ([0, 75, 150], [0, 1, 30, 150], [0, 128, 150]):
            assert torch.equal(sharded(logits_RV, edges, *given), wanted_R)


@interpreted
def test_what_cannot_be_chosen_is_not():
    sample_triton._COLUMNS = 8
    logits_RV = torch.full((4, 22), -torch.inf)
    logits_RV[1, 21] = -1e30
    logits_RV[2, 1], logits_RV[2, 14] = torch.nan, 9.0
    logits_RV[3, 12] = torch.inf
    for temperature in (0.0, 1.0):
        given = (torch.full((4,), temperature), torch.arange(4), torch.arange(4))
        for edges in ([0, 22], [0, 14, 22], [0, 2, 3, 22]):
            assert sharded(logits_RV, edges, *given).tolist() == [-1, 21, -1, 12]


@pytest.mark.parametrize("capability", [80, 90])
def test_nothing_spills_at_the_models_width(capability):
    signature = {"logits": "*bf16", "temperature": "*fp32", "seed": "*i64", "position": "*i64"}
    signature |= {"best_score": "*fp32", "best_token": "*i64"}
    made = compile_kernel(
        sample_triton._best_of_block_kernel,
        signature | dict.fromkeys(("stride", "columns", "first", "rows"), "i32"),
        {"GROUPS": sample_triton._COLUMNS // 4},
        capability,
        aligned=("logits", "stride", "first", "columns"),
        num_warps=4,
    )
    assert made.spilled_bytes == 0
    signature = {"score": "*fp32", "token": "*i64", "best_score": "*fp32", "best_token": "*i64", "rows": "i32"}
    made = compile_kernel(
        sample_triton._merge_kernel, signature, {"SHARDS": 197, "BLOCK": 256}, capability, num_warps=1
    )
    assert made.spilled_bytes == 0
