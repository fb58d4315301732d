from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

import torch
from interpreted import interpreted
from kernel_compile import compile_kernel

from gptoss_dist.kernels import rotary_reference, rotary_triton
from gptoss_dist.kernels.turning import Heads, Turning


def caches(dtype, pages, page_size, kv_heads, head_size):
    """Keys and values with strides of their own, inside memory that must stay as it is, and that memory."""
    pool = torch.full((pages, 2, page_size, kv_heads, head_size), torch.nan).to(dtype)
    places_first = torch.full((1 + page_size, pages, kv_heads, head_size), torch.nan).to(dtype)
    return (pool[:, 1], places_first[1:].transpose(0, 1)), (pool, places_first)


@interpreted
def test_the_kernel_computes_what_the_reference_computes():
    for dtype, slot_dtype in ((torch.float32, torch.int64), (torch.float16, torch.int32)):
        for tokens, query_heads, kv_heads, head_size in ((1, 8, 1, 16), (5, 4, 2, 32), (2, 3, 3, 16)):
            width = (query_heads + 2 * kv_heads) * head_size
            qkv_TC = torch.randn(tokens, width + 16).to(dtype)[:, :width]
            position_T = torch.randint(0, 131072, (tokens,), dtype=slot_dtype)
            slot_T = torch.randperm(12)[:tokens].to(slot_dtype)
            slot_T[tokens // 2 :: 3] = -1
            frequency = 150000.0 ** -(torch.arange(head_size // 2) / (head_size // 2))
            heads = Heads(query_heads, kv_heads, head_size)
            (wanted_cache, wanted_all), (found_cache, found_all) = (
                caches(dtype, 3, 4, kv_heads, head_size) for _ in range(2)
            )
            turns = rotary_reference.rotary_angles(position_T, frequency, 1.3466, dtype)
            bound = {"rtol": 0, "atol": 8 * torch.finfo(dtype).eps, "equal_nan": True}
            torch.testing.assert_close(
                rotary_triton.rotary_angles(position_T, frequency, 1.3466, dtype), turns, **bound
            )
            wanted = rotary_reference.rotate_and_store(qkv_TC, Turning(*turns, slot_T, *wanted_cache, heads))
            found = rotary_triton.rotate_and_store(qkv_TC, Turning(*turns, slot_T, *found_cache, heads))
            torch.testing.assert_close(found, wanted, **bound)
            for found_part, wanted_part in zip(found_all, wanted_all, strict=True):
                torch.testing.assert_close(found_part, wanted_part, **bound)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("ranks", [1, 4])
def test_nothing_spills_at_the_models_width(capability, ranks):
    strides = ("key_page_stride", "key_place_stride", "key_head_stride")
    strides += tuple(name.replace("key", "value") for name in strides)
    signature = dict.fromkeys(("qkv", "cosines", "sines", "query", "key", "value"), "*bf16") | {"slot": "*i64"}
    signature |= dict.fromkeys(("qkv_stride", *strides), "i32")
    made = compile_kernel(
        rotary_triton._rotate_and_store_kernel,
        signature,
        {
            "PAGE_SIZE": 64,
            "QUERY_HEADS": 64 // ranks,
            "KV_HEADS": 8 // ranks,
            "HALF": 32,
            "HEADS": rotary_triton._HEADS,
            "DEPENDENT": capability >= 90,
        },
        capability,
        aligned=("qkv", "query", "key", "value", "qkv_stride", *strides),
        num_warps=2,
    )
    assert made.spilled_bytes == 0
    assert "ld.global.v" in made.ptx


def test_angles_are_made_exactly():
    signature = {"position": "*i32", "inverse_frequency": "*fp32", "cosines": "*bf16", "sines": "*bf16"}
    made = compile_kernel(
        rotary_triton._angles_kernel,
        signature | {"tokens": "i32", "scaling": "fp32"},
        {"ANGLES": 32, "TOKENS": rotary_triton._TOKENS},
        num_warps=2,
    )
    assert "sin.approx" not in made.ptx  # too coarse at the angles of long contexts
