"""Paths as a user writes them, and small files that a user may have got wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gptoss_dist.errors import CheckpointError, ConfigError


def user_path(given: str | Path, option: str) -> Path:
    """The path that `option` was given, a home folder (`~`, `~ada`) in its place; ConfigError if nobody has one."""
    try:
        return Path(given).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{option}={given}: no home folder is known for {Path(given).parts[0]}. Write the whole path."
        ) from None


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from `file`; CheckpointError that names it if it is missing or broken."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file. Is {file.parent} the folder of a checkpoint?") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON: {error}. Fetch it again.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds {type(content).__name__}, not an object. Fetch it again.")
    return content
