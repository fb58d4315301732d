"""Tokens that depend on nothing but the logits and the temperature, chosen shard by shard: no logits are gathered.

    shard ─► best of the shard ─► all-gather of (score, token) ─► best of all

Shape legend: R rows that choose a token, G ranks of the replica.
"""

from __future__ import annotations

import torch

from gptoss_dist.engine.gather import all_gather_into
from gptoss_dist.engine.logits import Logits
from gptoss_dist.engine.sampler import Draw, Drawing


def quick_tokens(drawing: Drawing, logits: Logits, draw: Draw) -> torch.Tensor:
    """int64 [R], -1 where a logit is not a number. Collective over the replica where the vocabulary is cut.

    Reads nothing back from the device, so it can be part of a CUDA graph.
    """
    rows = draw.temperature_R.shape[0]
    score_R, token_R = drawing.best_of_shard(logits.columns_RC[:rows], logits.first, *draw)
    if logits.whole:
        return token_R
    pair_2R = torch.stack((score_R.double(), token_R.double()))  # exact: a score is float32, a token below 2**53
    pairs = pair_2R.new_empty(len(logits.widths) * 2, rows)
    all_gather_into(pairs, pair_2R, logits.group)
    pairs_G2R = pairs.view(-1, 2, rows)
    score_GR, token_GR = pairs_G2R[:, 0].to(score_R.dtype), pairs_G2R[:, 1].to(token_R.dtype)
    return drawing.merge_shards(score_GR, token_GR)
