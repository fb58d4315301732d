"""The body of a request to /v1/responses, in OpenAI's words, and what of it is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from gptoss_dist.server.api_error import ApiError, unsupported
from gptoss_dist.server.request_fields import MOST_WORDS, AtMost, Fields, SamplingFields
from gptoss_dist.server.sampling import MOST_LOGPROBS

_LOGPROBS = "message.output_text.logprobs"
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class Reasoning(Fields):
    """`summary` is accepted and none is made: gpt-oss gives its reasoning in full."""

    effort: Literal["low", "medium", "high"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class TextConfig(Fields):
    """`verbosity` is accepted and means nothing to gpt-oss."""

    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponseRequest(SamplingFields):
    """OpenAI's fields, and the sampling fields of the other APIs of this server."""

    input: str | list[Any] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue] | None, AtMost(16)] = Field(None, max_length=16)
    max_output_tokens: int | None = Field(None, ge=1)
    max_tool_calls: int | None = Field(None, ge=0)
    reasoning: Reasoning | None = None
    tools: list[dict[str, Any]] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    include: list[str] | None = Field(None, max_length=MOST_WORDS)
    truncation: Literal["auto", "disabled"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    conversation: Any | None = None
    prompt: Any | None = None

    @property
    def is_stored(self) -> bool:
        """Whether the response can be asked for later."""
        return self.store is not False

    @property
    def most_tokens(self) -> int | None:
        """Tokens of the output, its reasoning too; None: as many as fit."""
        return min((one for one in (self.max_output_tokens, self.max_tokens) if one is not None), default=None)

    @property
    def wanted_logprobs(self) -> int | None:
        """How many likeliest tokens to report beside the chosen one; None: no log probabilities."""
        wanted = self.top_logprobs or _LOGPROBS in (self.include or ())
        return (self.top_logprobs or 0) if wanted else None

    def check(self) -> None:
        """Raise ApiError for what this server cannot do, and for fields that contradict each other."""
        self.check_elsewhere()
        if self.conversation is not None:
            raise unsupported("conversation", "conversation is not supported; use previous_response_id.")
        if self.prompt is not None:
            raise unsupported("prompt", "prompt templates are not supported; send instructions and input.")
        if self.input is None and self.previous_response_id is None:
            message = "input is missing: send it, or previous_response_id to go on from there."
            raise ApiError(400, message, param="input", code="missing_required_parameter")
        if self.choices != 1:
            raise unsupported("n", "n is not supported here: a request makes one response.")
        if self.background and not self.is_stored:
            raise ApiError(400, "background=true needs store=true: it is how the response is asked for.", param="store")
