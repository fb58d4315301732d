"""What each rank of `test_engine.py` runs: every plan, one after the other, all conversations of the toy at once.

Rank 0 writes down the tokens. That the other ranks of a replica have the same is compared while they generate.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from gptoss_dist.config import compose_run
from gptoss_dist.engine.request import Request, Sampling
from gptoss_dist.launcher.env import read_rank_env
from gptoss_dist.model.tiny_conversations import CONVERSATIONS
from gptoss_dist.session import open_session


def main(out: str, plans: list[str]) -> None:
    env = read_rank_env(os.environ)
    assert env is not None
    for words in plans:
        run = compose_run(["model=tiny", "backend=engine", "cluster.agree_every=4", *words.split(",")])
        session = open_session(run, env)
        sampling = Sampling(max_tokens=80, temperature=0, stop_tokens=(200002, 200012))
        requests = [Request(one.name, tuple(one.example()[0]), sampling) for one in CONVERSATIONS]
        outputs: dict[str, list[int]] = {}
        for event in session.engine.stream(requests):
            outputs.setdefault(event.request_id, []).extend(event.tokens)
        if env.rank == 0:
            Path(out, f"{words}.json").write_text(json.dumps(outputs))
        session.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
