"""Where this program keeps what it prepared once: the harmony vocabulary, tokenizers, stand-in models."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$GPTOSS_CACHE`, or `~/.cache/gptoss-dist`. The folder need not exist yet."""
    chosen = os.environ.get("GPTOSS_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "gptoss-dist"
