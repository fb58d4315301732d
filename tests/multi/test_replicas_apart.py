"""Replicas of the toy on real ranks do not wait for each other."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest
from held_ranks import HELD, hold
from runtime_ranks import Ranks

from gptoss_dist.model.tiny import tiny_checkpoint
from gptoss_dist.model.tiny_conversations import CONVERSATIONS

pytestmark = pytest.mark.multi


@pytest.mark.parametrize("tp", [1, 2])
def test_a_replica_answers_while_the_other_is_held_up_in_a_step(tp: int, tmp_path: Path):
    tiny_checkpoint()
    out, gate = tmp_path / "found.json", tmp_path / "gate"
    os.mkfifo(gate)
    ranks = Ranks(2 * tp, None, tmp_path, unwatched=partial(hold, str(out), str(gate), tp))
    assert ranks.statuses(within_s=200) == [0] * (2 * tp), ranks.printed()
    found = json.loads(out.read_text())
    wanted = {one.name: list(one.example()[1]) for one in CONVERSATIONS}
    held = found["before"].pop(HELD.name, [])
    assert len(held) < len(wanted[HELD.name]), "it was held up"
    assert found["before"] == {name: tokens for name, tokens in wanted.items() if name != HELD.name}
    assert found["after"] == wanted
    assert found["generated"] == [sum(map(len, found["before"].values())), len(held)]
