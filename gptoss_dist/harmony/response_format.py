"""The schema of a structured answer as harmony tells the model of it: a section at the end of the developer message.

https://github.com/openai/harmony/blob/main/docs/format.md has it under "Structured output". It asks and does not
enforce; gptoss_dist.harmony.grammar does, and says what is wrong in a response format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gptoss_dist.errors import PromptError
from gptoss_dist.harmony.checks import check_text

_FIELD = "response_format.json_schema"
_NAME = "response"
"""The heading of a format without a name."""


def format_section(response_format: Mapping[str, Any] | None) -> str:
    """The section, empty for what has no schema: text, json_object. Raises PromptError naming the field."""
    if response_format is None or response_format.get("type") != "json_schema":
        return ""
    described = response_format.get("json_schema")
    schema = described.get("schema") if isinstance(described, Mapping) else None
    if not isinstance(described, Mapping) or not isinstance(schema, Mapping):
        return ""
    given, description = described.get("name"), described.get("description")
    name = _NAME if given is None else check_text(given, f"{_FIELD}.name")
    comment = "" if description is None else check_text(description, f"{_FIELD}.description")
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(f"{_FIELD}.schema: not JSON: {error}.") from error
    check_text(text, f"{_FIELD}.schema")
    lines = [f"// {line}" for line in comment.replace("\r\n", "\n").removesuffix("\n").split("\n")] if comment else []
    return "\n".join(["# Response Formats", "", f"## {name}", "", *lines, text])
