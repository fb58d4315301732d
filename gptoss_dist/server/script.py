"""The script of `engine=scripted`: a YAML or JSON file that says what is answered to which last user message.

- match: hello                     # a text: the last user message contains it; the first entry that matches is taken
  text: Hello!                     # said on the final channel, then the turn ends
  delay_s: 0.01                    # before each token
- match: /weather in (\\w+)/       # between slashes: a regular expression
  harmony: <|channel|>analysis<|message|>Call it.<|end|><|start|>assistant to=functions.get_weather<|channel|>commentary
    json<|message|>{"city":"Paris"}<|call|>
  finish: stop                     # why it ends after the last token: stop (the default) or length
- tokens: [200005, 17196, 200008, 13225, 200002]     # token ids; without `match`: answers everything else
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml  # type: ignore[import-untyped]

from gptoss_dist.engine.request import Finish
from gptoss_dist.engine.scripted import Script
from gptoss_dist.errors import ConfigError
from gptoss_dist.files import user_path
from gptoss_dist.harmony.vocab import load_encoding

_KEYS = {"match", "tokens", "harmony", "text", "delay_s", "finish"}
_SAYS = ("tokens", "harmony", "text")
_USER = re.compile(r"<\|start\|>user(?::[^<]*)?<\|message\|>(.*?)<\|end\|>", re.DOTALL)
_NOTHING_MATCHES = "The script has no answer to this message."


@dataclass(frozen=True)
class Entry:
    """One item of the script."""

    pattern: re.Pattern[str] | None
    script: Script

    def matches(self, message: str) -> bool:
        """Whether it answers this last user message."""
        return self.pattern is None or self.pattern.search(message) is not None


class ScriptBook:
    """All entries of a file."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        """The first that matches answers."""
        self._entries = tuple(entries)

    def choose(self, prompt: Sequence[int]) -> Script:
        """What is said to a prompt; where nothing matches, a sentence that says so."""
        message = last_user_message(prompt)
        return next((one.script for one in self._entries if one.matches(message)), _final(_NOTHING_MATCHES))


def load_script(file: str) -> ScriptBook:
    """Read a script. Raises ConfigError naming the file and the entry."""
    try:
        content = yaml.safe_load(user_path(file, "engine.script").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"engine.script={file}: cannot be read: {' '.join(str(error).split())}.") from None
    if not isinstance(content, list) or not content:
        raise ConfigError(f"engine.script={file}: a list of entries is needed.")
    return ScriptBook([_entry(f"engine.script={file}: entry {index}", one) for index, one in enumerate(content)])


def last_user_message(prompt: Sequence[int]) -> str:
    """The text of the last user message of a harmony prompt, or the whole of a prompt without one."""
    text: str = load_encoding().decode(list(prompt))
    found = _USER.findall(text)
    return found[-1] if found else text


def _entry(where: str, one: Any) -> Entry:
    if not isinstance(one, dict) or (unknown := set(one) - _KEYS):
        known = ", ".join(sorted(_KEYS))
        raise ConfigError(
            f"{where}: {f'unknown keys {unknown}' if isinstance(one, dict) else 'no mapping'}. Keys: {known}."
        )
    said = [key for key in _SAYS if key in one]
    if len(said) != 1:
        raise ConfigError(f"{where}: one of {', '.join(_SAYS)} is needed, and there are {len(said)}.")
    delay, finish = one.get("delay_s", 0), one.get("finish", "stop")
    if not isinstance(delay, int | float) or not 0 <= delay <= 3600:
        raise ConfigError(f"{where}: delay_s={delay!r}: seconds before each token, 0 or more.")
    if finish not in ("stop", "length"):
        raise ConfigError(f"{where}: finish={finish!r}: stop or length.")
    tokens = _tokens(where, said[0], one[said[0]])
    return Entry(_pattern(where, one.get("match")), Script(tokens, float(delay), Finish(finish)))


def _tokens(where: str, key: str, value: Any) -> tuple[int, ...]:
    if key == "tokens":
        if not isinstance(value, list) or not value or not all(isinstance(one, int) and one >= 0 for one in value):
            raise ConfigError(f"{where}: tokens: a list of token ids is needed.")
        return tuple(value)
    if not isinstance(value, str) or (key == "harmony" and not value):
        raise ConfigError(f"{where}: {key}: a text is needed.")
    if key == "text":
        return _final(value).tokens
    return tuple(load_encoding().encode(value, allowed_special="all"))


def _final(text: str) -> Script:
    encoding = load_encoding()
    head = encoding.encode("<|channel|>final<|message|>", allowed_special="all")
    end = encoding.encode("<|return|>", allowed_special="all")
    return Script((*head, *encoding.encode(text, disallowed_special=()), *end))


def _pattern(where: str, match: Any) -> re.Pattern[str] | None:
    if match is None:
        return None
    if not isinstance(match, str):
        raise ConfigError(f"{where}: match: a text, or /a regular expression/.")
    is_expression = len(match) > 2 and match.startswith("/") and match.endswith("/")
    try:
        return re.compile(match[1:-1] if is_expression else re.escape(match), re.DOTALL)
    except re.error as error:
        raise ConfigError(f"{where}: match {match!r} is no regular expression: {error}.") from None
