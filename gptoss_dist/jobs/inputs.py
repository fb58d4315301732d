"""Files that a user names for a job; each problem is a PromptError with the key and the file."""

from __future__ import annotations

import json
from typing import Any

from gptoss_dist.errors import PromptError
from gptoss_dist.files import user_path


def read_text(file: str, key: str) -> str:
    """A file's text."""
    try:
        return user_path(file, key).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{key}={file}: cannot be read: {error}.") from None


def read_json(file: str, key: str) -> Any:
    """A file's JSON."""
    try:
        return json.loads(read_text(file, key))
    except (json.JSONDecodeError, RecursionError) as error:
        raise PromptError(f"{key}={file}: not JSON: {error}.") from None


def list_of_objects(content: Any, where: str) -> list[dict[str, Any]]:
    """The content, if it is a list of objects; `where` it stands goes into the message."""
    if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
        raise PromptError(f"{where}: a list of objects is needed, [{{…}}, …].")
    return content
