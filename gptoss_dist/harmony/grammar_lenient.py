"""A schema without what cannot be enforced, for a request that is not `strict`: the model reads the rest of it anyway.

Left out: patterns with look-around or references to groups, or that become too large; multiples too large or too fine;
`$ref` to anything but a place in the schema. llguidance itself passes over keywords and formats that it does not know.
What contradicts itself, or is no JSON schema, stays in and is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from gptoss_dist.errors import ConfigError
from gptoss_dist.harmony.grammar_bounds import MOST_PATTERNS, is_too_fine, is_too_large
from gptoss_dist.harmony.grammar_json import text_of, try_out
from gptoss_dist.harmony.grammar_walk import has_identifier, mapped, patterns_of, resolve, walk

_DRAFTS = ("http://json-schema.org/", "https://json-schema.org/")


def enforceable(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What of `schema` can be enforced. Raises ConfigError, beginning with `:`, for more patterns than can be tried."""
    different = {pattern for _, node in walk(schema, "") for pattern in patterns_of(node)}
    if len(different) > MOST_PATTERNS:
        raise ConfigError(f": {len(different)} different patterns; a schema may have {MOST_PATTERNS}.")
    root = {keyword: value for keyword, value in schema.items() if keyword != "x-guidance"}
    if not str(root.get("$schema", _DRAFTS[0])).startswith(_DRAFTS):
        del root["$schema"]
    return _without(root, schema, is_inner=False)


def _without(node: Mapping[str, Any], root: Mapping[str, Any], is_inner: bool) -> dict[str, Any]:
    """`node` and the schemas in it. is_inner: an identifier moves what references here mean, so none is followed."""
    kept = dict(node)
    reference = node.get("$ref")
    if isinstance(reference, str) and (is_inner or resolve(root, reference) is None):
        del kept["$ref"]
    if is_too_fine(node.get("multipleOf")):
        del kept["multipleOf"]
    if isinstance(pattern := node.get("pattern"), str) and not _is_enforceable(pattern):
        del kept["pattern"]
    if isinstance(by_pattern := node.get("patternProperties"), Mapping):
        kept["patternProperties"] = {name: child for name, child in by_pattern.items() if _is_enforceable(name)}
        if len(kept["patternProperties"]) < len(by_pattern):  # what matched those left out may now have any name
            kept.pop("additionalProperties", None)
    return mapped(kept, lambda child: _inner(child, root, is_inner))


def _inner(child: Mapping[str, Any], root: Mapping[str, Any], is_inner: bool) -> dict[str, Any]:
    if not has_identifier(child):
        return _without(child, root, is_inner)
    plain = {keyword: value for keyword, value in child.items() if keyword not in ("$id", "id")}
    return _without(plain, root, is_inner=True)


@functools.lru_cache(maxsize=1024)
def _is_enforceable(pattern: str) -> bool:
    return not is_too_large(pattern) and not try_out(text_of({"type": "string", "pattern": pattern}))
