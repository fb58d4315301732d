"""JSON text of a schema, token by token: masks by llguidance (https://github.com/guidance-ai/llguidance).

White space is free and bounded: at each place where JSON allows it, at most one line break and 64 blanks or tabs, never
before the text nor after it, so that a model cannot write white space for ever.
"""

from __future__ import annotations

import functools
import json
import random
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits

from gptoss_dist.errors import GptOssDistError
from gptoss_dist.harmony.grammar_tokens import RETURN, VOCABULARY_SIZE, mask_of, tokenizer
from gptoss_dist.harmony.header import FIRST_CONTROL

_WHITE_SPACE = r"\n[ \t]{0,64}|[ \t]{1,64}"
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "max_lexer_states": 50_000,
    "step_max_items": 100_000,
    "max_items_in_row": 20_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
_TRIAL_TOKENS = 24
_LONGEST_REASON = 300


class JsonText:
    """The text so far, from its first character on."""

    def __init__(self, schema: str, lenient: bool = False) -> None:
        """Begin the text.

        schema: as `check_schema` gave it. lenient: leave out what llguidance does not know. Raises GptOssDistError
        with llguidance's words when it cannot be compiled.
        """
        self._matcher = _compiled(schema, lenient).deep_copy()

    @property
    def failure(self) -> str:
        """Why the text cannot be followed further, in llguidance's words; empty while it can."""
        return _reason(self._matcher) if self._matcher.is_error() else ""

    def allowed(self, ends: tuple[int, ...]) -> torch.Tensor:
        """The tokens that may follow, torch.bool [vocabulary], new; `ends` where the text is whole.

        All False after a failure: llguidance bounds its work per token, and `check_schema` tries the beginning only.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            return mask_of(())
        mask = torch.from_numpy(np.unpackbits(bits, bitorder="little", count=VOCABULARY_SIZE).view(np.bool_))
        whole = bool(mask[RETURN])
        mask[FIRST_CONTROL:] = False
        if whole:
            mask[list(ends)] = True
        return mask

    def is_whole(self) -> bool:
        """Whether the text is JSON that the schema describes."""
        return bool(self._matcher.is_accepting())

    def accept(self, token: int) -> bool:
        """Append an ordinary token; False, and nothing changes, where the text would no longer fit the schema."""
        fits = self._matcher.validate_tokens([token]) == 1
        if fits:
            self._matcher.consume_token(token)  # may fail at a limit: then nothing is allowed any more
        return fits


def try_out(schema: str, lenient: bool = False) -> str:
    """What is wrong with a schema, in llguidance's words; empty when a text of it could be begun.

    Compiles it and writes a few tokens at random (always the same ones), since some schemas fail only then: one that
    refers to nothing but itself, patterns that exclude each other, objects of too many properties.
    """
    chance = random.Random(0)
    try:
        text = JsonText(schema, lenient)
        for _ in range(_TRIAL_TOKENS):
            tokens = text.allowed((RETURN,)).nonzero().flatten()
            if len(tokens) == 0:
                return text.failure or "no text fits it"
            token = int(tokens[chance.randrange(len(tokens))])
            if token == RETURN or not text.accept(token):
                break
        return text.failure
    except GptOssDistError as error:
        return str(error)


@functools.lru_cache(maxsize=64)
def _compiled(schema: str, lenient: bool) -> LLMatcher:
    """A matcher that stays at its beginning, to be copied. Raises GptOssDistError."""
    options: dict[str, Any] = {"whitespace_pattern": _WHITE_SPACE, "lenient": lenient, "coerce_one_of": lenient}
    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=options)  # type: ignore[arg-type]
    except ValueError as error:
        raise GptOssDistError(str(error)) from error
    matcher = LLMatcher(tokenizer(), grammar, log_level=0, limits=LLParserLimits(**_LIMITS))
    if matcher.is_error():
        raise GptOssDistError(_reason(matcher))
    return matcher


def _reason(matcher: LLMatcher) -> str:
    """The matcher's complaint in one line, not longer than a line may be."""
    words = " ".join(matcher.get_error().replace("<non-verbose/>", "").split())
    if words == "NoExtensionBias":  # llguidance's name for a place that nothing can follow
        return "no text fits it; does a $ref lead only to itself?"
    if "coerce_one_of" in words:
        return "oneOf whose alternatives may overlap; use anyOf"
    return words if len(words) <= _LONGEST_REASON else f"{words[:_LONGEST_REASON]}…"


def text_of(schema: dict[str, Any]) -> str:
    """The schema as text, its properties in their order. Raises TypeError, ValueError, RecursionError."""
    return json.dumps(schema, ensure_ascii=False, allow_nan=False)
