"""`gptoss tiny`: train the toy model, or say where the trained one is."""

from __future__ import annotations

from typing import Any

from gptoss_dist.jobs.table import Result
from gptoss_dist.model.tiny import tiny_checkpoint, tiny_facts, tiny_folder
from gptoss_dist.model.tiny_conversations import CONVERSATIONS
from gptoss_dist.schema.job.tiny import TinyConf
from gptoss_dist.schema.run import RunConf


def run(run: RunConf) -> Result:
    """The job as `jobs.table` wants it."""
    assert isinstance(run.job, TinyConf)
    return Result(run_tiny(run.job.force))


def run_tiny(force: bool = False) -> dict[str, Any]:
    """Train the toy model if there is none, or anew if `force`; say where it lies, what it knows and how it went."""
    was_there = tiny_folder().exists()
    folder = tiny_checkpoint(force)
    return {
        "folder": str(folder),
        "trained": force or not was_there,
        "conversations": [conversation.name for conversation in CONVERSATIONS],
        **tiny_facts(folder),
    }
