"""The paged engine over real ranks: the tokens that the toy was trained to give, by every plan."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gptoss_dist.model.tiny import tiny_checkpoint
from gptoss_dist.model.tiny_conversations import CONVERSATIONS

pytestmark = pytest.mark.multi
SMALL_CACHE = "engine.cache_tokens=400,engine.page_size=8,engine.step_tokens=64,engine.max_running=8"
PLANS = {2: [f"plan=tp,{SMALL_CACHE}", "plan=ep"], 4: ["plan=tp_ep", f"plan=dp_tp,{SMALL_CACHE}"]}


@pytest.mark.parametrize("ranks", PLANS)
def test_every_plan_gives_the_same_tokens(ranks, tmp_path):
    tiny_checkpoint()
    program = Path(__file__).with_name("engine_ranks.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    done = subprocess.run(
        [*launch, str(program), str(tmp_path), *PLANS[ranks]], capture_output=True, text=True, check=False, timeout=560
    )
    assert done.returncode == 0, done.stderr
    wanted = {one.name: list(one.example()[1]) for one in CONVERSATIONS}
    for plan in PLANS[ranks]:
        assert json.loads((tmp_path / f"{plan}.json").read_text()) == wanted, plan
