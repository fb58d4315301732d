"""From the hub to an answer on two ranks without a network: prefetch, then a run that takes everything from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import checkpoint_files, hub_server

from gptoss_dist.model.tiny import tiny_checkpoint
from gptoss_dist.model.tiny_conversations import CONVERSATIONS

pytestmark = pytest.mark.multi

NAME = "openai/gpt-oss-20b"
NO_SUCH_HUB = "http://127.0.0.1:9"
"""Whoever asks it gets an error, so that a run which succeeds has asked nobody."""


def generate(staged: Path, cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "gptoss_dist",
        "generate",
        "cluster.device=cpu",
        f"cluster.staged={staged}",
        *words,
    ]
    kept = {name: value for name, value in os.environ.items() if name not in ("TIKTOKEN_ENCODINGS_BASE",)}
    environ = {**kept, "GPTOSS_CACHE": str(cache), "HF_ENDPOINT": NO_SUCH_HUB, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ, check=False)


def test_what_was_staged_answers_where_there_is_no_network(tmp_path: Path):
    staged, cache = tmp_path / "staged", tmp_path / "cache"
    with hub_server({("models", NAME): checkpoint_files(tiny_checkpoint())}) as hub:
        for words in (("weights", "model=gpt_oss_20b"), ("vocab",)):
            done = hub.prefetch(*words, f"--out={staged}")
            assert done.returncode == 0, done.stderr
    one = next(one for one in CONVERSATIONS if len(one.messages) == 1 and one.answer_text)
    words = ("model=gpt_oss_20b", "model.dtype=float32", "plan=tp", "plan.tp=2", "generation=greedy")
    done = generate(staged, cache, *words, f"prompt={one.messages[0]['content']}", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["final"] == one.answer_text
    assert not cache.exists()  # the vocabulary came from the staged folder too

    done = generate(staged, cache, "model=gpt_oss_120b", "prompt=Hello")
    assert done.returncode == 1
    assert "holds no weights of openai/gpt-oss-120b; those it holds: openai/gpt-oss-20b" in done.stderr
