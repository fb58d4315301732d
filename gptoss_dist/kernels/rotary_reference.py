"""Rotary positions on queries and keys, and the new keys and values into the paged cache, in plain torch.

The angles and the pairing of halves follow `GptOssRotaryEmbedding` and `_apply_rotary_emb` of transformers
(models/gpt_oss/modeling_gpt_oss.py); the frequencies are YaRN's (arXiv:2309.00071), taken from the loaded model.

Shape legend: T tokens, C = (Q + 2K)·D columns, Q query heads, K key-value heads of this rank, D head size, F = D/2
angles, P pages, B tokens a page.
"""

from __future__ import annotations

import torch

from gptoss_dist.kernels.turning import Turning


def rotary_angles(
    position_T: torch.Tensor, inverse_frequency_F: torch.Tensor, attention_scaling: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine, [T, F] each in `dtype`, of every position times every frequency.

    Formed in float32, multiplied by `attention_scaling` and rounded to the activations' dtype, as the model does. They
    are the same in all layers.
    """
    angle_TF = position_T.to(torch.float32)[:, None] * inverse_frequency_F.to(torch.float32)
    return (angle_TF.cos() * attention_scaling).to(dtype), (angle_TF.sin() * attention_scaling).to(dtype)


def rotate_and_store(qkv_TC: torch.Tensor, turning: Turning) -> torch.Tensor:
    """The rotated queries, [T, Q, D]; rotated keys and values go to their slots of the cache.

    A row of `qkv_TC` holds the query heads, then the key heads, then the value heads. A padding row writes nothing (its
    query is rotated like any other). Cosine and sine are those of `rotary_angles`; the rotation itself is float32,
    rounded once.
    """
    cosine_TF, sine_TF, slot_T, key_PBKD, value_PBKD, heads = turning
    tokens, turned = qkv_TC.shape[0], heads.query + heads.key_value
    if tokens == 0:
        return qkv_TC.new_empty(0, heads.query, heads.size)
    heads_TND = qkv_TC.reshape(tokens, heads.rows, heads.size)
    wide = torch.promote_types(qkv_TC.dtype, torch.float32)
    cos_T1d, sin_T1d = cosine_TF.to(wide)[:, None], sine_TF.to(wide)[:, None]
    first_TNd, second_TNd = heads_TND[:, :turned].to(wide).chunk(2, dim=-1)
    rotated = (first_TNd * cos_T1d - second_TNd * sin_T1d, second_TNd * cos_T1d + first_TNd * sin_T1d)
    rotated_TND = torch.cat(rotated, dim=-1).to(qkv_TC.dtype)
    _store(rotated_TND[:, heads.query :], slot_T, key_PBKD)
    _store(heads_TND[:, turned:], slot_T, value_PBKD)
    return rotated_TND[:, : heads.query].contiguous()


def _store(new_TKD: torch.Tensor, slot_T: torch.Tensor, cache_PBKD: torch.Tensor) -> None:
    """Padding rows repeat the first real row's write, or write back what is there: nothing is read by the host."""
    real_T = slot_T >= 0
    row_T = torch.where(real_T, torch.arange(len(slot_T), device=slot_T.device), real_T.int().argmax())
    slot_T = slot_T.long()[row_T].clamp(min=0)
    place = (slot_T // cache_PBKD.shape[1], slot_T % cache_PBKD.shape[1])
    cache_PBKD[place] = torch.where(real_T.any(), new_TKD[row_T].to(cache_PBKD.dtype), cache_PBKD[place])
