from __future__ import annotations

import pytest
import torch
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding, apply_rotary_pos_emb

from gptoss_dist.kernels.rotary_reference import rotary_angles, rotate_and_store
from gptoss_dist.kernels.turning import Heads, Turning

TOKENS, QUERY_HEADS, KV_HEADS, HEAD_SIZE = 6, 4, 2, 64
PAGES, PAGE_SIZE = 3, 4


def rotary() -> GptOssRotaryEmbedding:
    return GptOssRotaryEmbedding(GptOssConfig(head_dim=HEAD_SIZE))


def random_case(dtype):
    module = rotary()
    qkv_TC = torch.randn(TOKENS, (QUERY_HEADS + 2 * KV_HEADS) * HEAD_SIZE).to(dtype)
    position_T = torch.randint(0, 131072, (TOKENS,))
    slot_T = torch.randperm(PAGES * PAGE_SIZE)[:TOKENS]
    slot_T[2] = -1
    caches = [torch.full((PAGES, PAGE_SIZE, KV_HEADS, HEAD_SIZE), torch.nan).to(dtype) for _ in range(2)]
    return module, qkv_TC, position_T, slot_T, caches


def turns_of(module, position_T, dtype):
    return rotary_angles(position_T, module.inv_freq, module.attention_scaling, dtype)


HEADS = Heads(QUERY_HEADS, KV_HEADS, HEAD_SIZE)


def heads_of(qkv_TC, first, count):
    return qkv_TC.view(len(qkv_TC), -1, HEAD_SIZE)[:, first : first + count]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_rotates_as_the_model_does_and_fills_only_the_slots(dtype):
    module, qkv_TC, position_T, slot_T, (key_PBKD, value_PBKD) = random_case(dtype)
    assert module.attention_scaling > 1.3  # YaRN's, not the plain rotation
    query = heads_of(qkv_TC, 0, QUERY_HEADS).unsqueeze(0)
    key = heads_of(qkv_TC, QUERY_HEADS, KV_HEADS).unsqueeze(0)
    cos, sin = module(qkv_TC, position_T.unsqueeze(0))
    query, key = apply_rotary_pos_emb(query.float(), key.float(), cos.float(), sin.float(), unsqueeze_dim=2)
    found = rotate_and_store(qkv_TC, Turning(*turns_of(module, position_T, dtype), slot_T, key_PBKD, value_PBKD, HEADS))
    assert found.dtype == dtype
    assert torch.equal(found, query[0].to(dtype))
    flat_key, flat_value = key_PBKD.flatten(0, 1), value_PBKD.flatten(0, 1)
    real_T = slot_T >= 0
    assert torch.equal(flat_key[slot_T[real_T]], key[0, real_T].to(dtype))
    assert torch.equal(flat_value[slot_T[real_T]], heads_of(qkv_TC, QUERY_HEADS + KV_HEADS, KV_HEADS)[real_T])
    untouched = torch.ones(PAGES * PAGE_SIZE, dtype=torch.bool)
    untouched[slot_T[real_T]] = False
    assert flat_key[untouched].isnan().all()
    assert flat_value[untouched].isnan().all()


def test_padding_alone_writes_nothing():
    module, qkv_TC, position_T, slot_T, (key_PBKD, value_PBKD) = random_case(torch.float32)
    nowhere_T, turns = torch.full_like(slot_T, -1), turns_of(module, position_T, torch.float32)
    rotate_and_store(qkv_TC, Turning(*turns, nowhere_T, key_PBKD, value_PBKD, HEADS))
    assert key_PBKD.isnan().all()
    assert value_PBKD.isnan().all()
