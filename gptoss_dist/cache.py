"""Where this program keeps what it prepared once: the harmony vocabulary, tokenizers, stand-in models."""

from __future__ import annotations

import os
from pathlib import Path

from gptoss_dist.files import user_path


def cache_folder() -> Path:
    """`$GPTOSS_CACHE`, or `~/.cache/gptoss-dist`. The folder need not exist yet."""
    return user_path(os.environ.get("GPTOSS_CACHE") or "~/.cache/gptoss-dist", "GPTOSS_CACHE")
