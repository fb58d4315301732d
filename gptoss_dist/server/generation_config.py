"""`generation_config`, the field in which `transformers chat` sends its settings: a `GenerationConfig` as JSON text.

A field of OpenAI's that the request has itself comes first, as with `transformers serve`. What a `GenerationConfig`
says about anything but sampling and length (beams, caches, token ids) means nothing here.
"""

from __future__ import annotations

import json
from typing import Any

NAME = "generation_config"
_SAME = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def spread(body: Any) -> Any:
    """The body of a request with its `generation_config` spread over the fields that it does not have.

    Raises ValueError for one that is no JSON object.
    """
    if not isinstance(body, dict) or not isinstance(body.get(NAME), str):
        return body
    try:
        config = json.loads(body[NAME])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{NAME} is not JSON: {str(error)[:200]}.") from None
    if not isinstance(config, dict):
        raise ValueError(f"{NAME} must be a JSON object.")
    return {**body, **{name: value for name, value in _fields(config).items() if _is_free(body, name)}}


def _fields(config: dict[str, Any]) -> dict[str, Any]:
    """In OpenAI's words."""
    fields = {name: config[name] for name in _SAME if config.get(name) is not None}
    if config.get("do_sample") is False:
        fields["temperature"] = 0.0
    if config.get("max_new_tokens") is not None:
        fields["max_tokens"] = config["max_new_tokens"]
    if config.get("stop_strings") is not None:
        fields["stop"] = config["stop_strings"]
    return fields


def _is_free(body: dict[str, Any], name: str) -> bool:
    return all(body.get(one) is None for one in (_LENGTHS if name in _LENGTHS else (name,)))
