"""The sampling keys of a call from a script, checked as those on a command line are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gptoss_dist.checks import check_generation
from gptoss_dist.complaints import first_sentence
from gptoss_dist.errors import ConfigError
from gptoss_dist.schema.generation import GenerationConf

_SAID_ELSEWHERE = {
    "do_sample": "temperature=0 is greedy, a temperature above it draws.",
    "eos_token_id": "What ends the output is generate's stop_tokens.",
    "max_length": "max_new_tokens counts the output alone.",
    "max_tokens": "max_new_tokens counts the output.",
    "stop_strings": "stop is a list of texts.",
}
"""Keys of transformers' `generate` and of OpenAI's API, and what says the same here."""


def change_generation(generation: GenerationConf, changes: Mapping[str, Any]) -> GenerationConf:
    """A frozen copy with some keys changed. Raises ConfigError that names the key."""
    known = [one.name for one in dataclasses.fields(generation)]
    if unknown := sorted(set(changes) - set(known)):
        hint = f" {_SAID_ELSEWHERE[unknown[0]]}" if unknown[0] in _SAID_ELSEWHERE else ""
        raise ConfigError(f"{unknown[0]}: no such sampling key. Known: {', '.join(known)}.{hint}")
    changed = OmegaConf.structured(GenerationConf)
    for name, value in {**{name: getattr(generation, name) for name in known}, **changes}.items():
        try:
            changed[name] = list(value) if isinstance(value, tuple) else value
        except OmegaConfBaseException as error:
            raise ConfigError(f"{name}={value!r}: {first_sentence(error)}.") from None
    result = OmegaConf.to_object(changed)
    assert isinstance(result, GenerationConf)
    check_generation(result)
    result.freeze()
    return result
