"""Where a model's files are: the stand-in of this machine, a folder, or the hub's snapshot."""

from __future__ import annotations

from pathlib import Path

from gptoss_dist.model.checkpoint import locate
from gptoss_dist.schema.model import ModelConf

TINY = "tiny"
"""The `model.path` that stands for the trained toy."""


def checkpoint_folder(model: ModelConf) -> Path:
    """The folder to load, made (the toy) or fetched (the hub) if need be. Raises CheckpointError."""
    if model.path == TINY:
        from gptoss_dist.model.tiny import tiny_checkpoint

        return tiny_checkpoint()
    return locate(model.path, model.revision)
