"""Tokens chosen from a vocabulary that is cut over real ranks are those that one rank with all of it chooses."""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise

import pytest
import torch
from careful_rows import draw_of
from engine_choice_ranks import choose, logits_of, make_rows, steps_of
from runtime_ranks import Ranks as RealRanks

from gptoss_dist.engine.choice import Chooser
from gptoss_dist.engine.logits import Logits
from gptoss_dist.runtime.mesh import Ranks

pytestmark = pytest.mark.multi


def alone() -> Chooser:
    return Chooser(Ranks(1, 1, 0, 0, None), torch.device("cpu"))


@pytest.mark.parametrize("count", [2, 4])
def test_cut_logits_give_the_tokens_of_whole_ones(count, tmp_path):
    ranks = RealRanks(count, None, tmp_path, unwatched=partial(choose, str(tmp_path)))
    assert ranks.statuses(within_s=200) == [0] * count, ranks.printed()
    rows = make_rows()
    tokens, logprobs = alone().choose(rows, Logits(logits_of(len(rows))), draw_of(rows)).wait("step 1")
    half, _ = alone().choose(rows, Logits(logits_of(len(rows)).bfloat16()), draw_of(rows)).wait("step 1")
    steps = steps_of(alone(), Logits)
    assert any(first != second for first, second in pairwise(one[4] for one in steps)), "penalties count"
    tops = {name: [token for token, _ in value.top] for name, value in logprobs.items()}
    assert tokens[-1] is None
    assert tokens[-2] % 2 == 1
    for rank in range(count):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["whole"][0] == tokens
        assert found["cut"] == [tokens, tops]
        assert found["half"][0] == half
        assert found["steps"] == steps
        for row in (0, 2):
            assert found[f"nan {row}"].startswith(f"step 2, request {row}: the model's logits for the next token are")
