from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

import torch
from interpreted import interpreted
from kernel_compile import compile_kernel

from gptoss_dist.kernels import attention_begin_triton, projection_reference, projection_triton, rotary_reference
from gptoss_dist.kernels.projection_tiles import candidates_few, candidates_one
from gptoss_dist.kernels.turning import Heads, Turning

SHAPE = QUERY_HEADS, KV_HEADS, HEAD_SIZE = 4, 2, 32
COLUMNS = (QUERY_HEADS + 2 * KV_HEADS) * HEAD_SIZE


def caches(dtype):
    """Keys and values with strides of their own."""
    pool = torch.zeros(6, 2, 4, KV_HEADS, HEAD_SIZE, dtype=dtype)
    return pool[:, 1], torch.zeros(4, 6, KV_HEADS, HEAD_SIZE, dtype=dtype).transpose(0, 1)


@interpreted
def test_one_launch_does_what_two_do():
    for dtype in (torch.float32, torch.float16):
        for tokens in (0, 1, 2, 16, 17):
            normed_TH = torch.randn(tokens, 48).to(dtype)[:, :40]
            weight_CH, bias_C = (torch.randn(COLUMNS, 40) / 6).to(dtype), torch.randn(COLUMNS).to(dtype)
            position_T = torch.randint(0, 4096, (tokens,), dtype=torch.int32)
            slot_T = torch.randperm(24)[:tokens]
            slot_T[tokens // 2 :: 3] = -1
            frequency = 150000.0 ** -(torch.arange(HEAD_SIZE // 2) / (HEAD_SIZE // 2))
            wanted_cache, found_cache = caches(dtype), caches(dtype)
            for bias in (None, bias_C):
                qkv_TC = projection_reference.project(normed_TH, weight_CH, bias)
                turns = rotary_reference.rotary_angles(position_T, frequency, 1.3466, dtype)
                to_wanted, to_found = (
                    Turning(*turns, slot_T, *one, Heads(*SHAPE)) for one in (wanted_cache, found_cache)
                )
                wanted = rotary_reference.rotate_and_store(qkv_TC, to_wanted)
                found = attention_begin_triton.begin_attention(normed_TH, weight_CH, bias, to_found)
                bound = {"rtol": 0, "atol": 32 * torch.finfo(dtype).eps}
                torch.testing.assert_close(found, wanted, **bound)
                for found_part, wanted_part in zip(found_cache, wanted_cache, strict=True):
                    torch.testing.assert_close(found_part, wanted_part, **bound)


@pytest.mark.parametrize("tokens", [1, 8, 16])
@pytest.mark.parametrize("dependent", [False, True])
def test_nothing_spills_at_the_models_width(tokens, dependent):
    if tokens == 1:
        made = {"TOKENS": 1, "SLICES": 1, **projection_triton.one_options(candidates_one[0])}
    else:
        made = projection_triton.few_options(candidates_few[0], tokens)
    options = {name: made.pop(name) for name in ("num_warps", "num_stages") if name in made}
    strides = [f"{part}_{kind}_stride" for part in ("key", "value") for kind in ("page", "place", "head")]
    strides += ["x_stride", "weight_stride"]
    weights = ("x", "weight", "bias", "query", "key", "value", "cosines", "sines")
    signature = dict.fromkeys(weights, "*bf16") | {"slot": "*i64"}
    constants = {"COLUMNS": 2880, "HAS_BIAS": True, "PAGE_SIZE": 16, "QUERY_HEADS": 64, "KV_HEADS": 8, "HALF": 32}
    found = compile_kernel(
        attention_begin_triton._begin_attention_kernel,
        signature | dict.fromkeys(("tokens", *strides), "i32"),
        {**constants, **made, "DEPENDENT": dependent},
        aligned=(*weights[:-2], *strides),
        **options,
    )
    assert found.spilled_bytes == 0
    assert ("ld.global.v4.b32" if tokens == 1 else "cp.async.cg.shared.global") in found.ptx
    assert ("griddepcontrol.wait" in found.ptx) == dependent
