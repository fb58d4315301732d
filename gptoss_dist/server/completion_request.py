"""The body of a request to /v1/completions, and its prompts as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from gptoss_dist.errors import PromptError
from gptoss_dist.harmony.checks import check_text, check_together
from gptoss_dist.harmony.encode import encode_text
from gptoss_dist.harmony.header import FIRST_CONTROL
from gptoss_dist.server.api_error import ApiError, unsupported
from gptoss_dist.server.request_fields import SamplingFields
from gptoss_dist.server.token_text import token_bytes

MOST_TOKENS = 16
"""OpenAI's default of max_tokens here."""
_MOST_PROMPTS = 256

TokenIds = Annotated[list[int], Field(min_length=1, fail_fast=True)]
Prompts = Annotated[list[str], Field(min_length=1, max_length=_MOST_PROMPTS)]
TokenPrompts = Annotated[list[TokenIds], Field(min_length=1, max_length=_MOST_PROMPTS, fail_fast=True)]


class CompletionRequest(SamplingFields):
    """OpenAI's fields."""

    prompt: str | TokenIds | Prompts | TokenPrompts
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=5)
    suffix: str | None = None
    best_of: int | None = Field(None, ge=1)

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or more, all of one kind."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        first = self.prompt[0]
        return [self.prompt] if isinstance(first, int) else list(self.prompt)  # type: ignore[list-item,arg-type]

    def check(self) -> None:
        """Raise ApiError for what is not supported, and for fields that contradict each other."""
        self.check_stream_options()
        self.check_elsewhere()
        if self.suffix:
            raise unsupported("suffix", "suffix is not supported: gpt-oss does not fill in.")
        if self.best_of is not None and self.best_of != self.choices:
            raise unsupported("best_of", f"best_of={self.best_of}: only n ({self.choices}) answers are made.")
        if self.echo and self.logprobs is not None:
            raise unsupported("echo", "echo and logprobs do not go together here.")


def tokens_of(body: CompletionRequest, vocabulary: int) -> list[list[int]]:
    """The prompts as token ids. Raises ApiError for one that is empty, or has no such tokens."""
    try:
        check_together(prompt for prompt in body.prompts if isinstance(prompt, str))
    except PromptError as error:
        raise ApiError(400, str(error), param="prompt") from None
    out: list[list[int]] = []
    for index, prompt in enumerate(body.prompts):
        where = "prompt" if len(body.prompts) == 1 else f"prompt.[{index}]"
        tokens: list[int] = []
        if isinstance(prompt, str):
            try:
                tokens = encode_text(check_text(prompt, where))
            except PromptError as error:
                raise ApiError(400, str(error), param=where) from None
        else:
            tokens = list(prompt)
            if wrong := [token for token in tokens if not 0 <= token < vocabulary]:
                raise ApiError(
                    400, f"{where}: token {wrong[0]} is outside the vocabulary of {vocabulary}.", param=where
                )
        if not tokens:
            raise ApiError(400, f"{where} is empty: there is nothing to continue.", param=where)
        out.append(tokens)
    return out


def text_of(tokens: Sequence[int]) -> str:
    """The text of a prompt, its control tokens left out."""
    return b"".join(token_bytes(token) for token in tokens if token < FIRST_CONTROL).decode(errors="replace")
