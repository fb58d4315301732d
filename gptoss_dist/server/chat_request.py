"""The body of a request to /v1/chat/completions, and what it means for the prompt."""

from __future__ import annotations

import datetime
from typing import Any, Literal

from pydantic import Field

from gptoss_dist.errors import PromptError
from gptoss_dist.harmony.conversation import PromptOptions, render
from gptoss_dist.harmony.renderable import renderable
from gptoss_dist.server.api_error import ApiError, from_error, unsupported
from gptoss_dist.server.chat_tools import offer_of
from gptoss_dist.server.offer import Offer, check_choice
from gptoss_dist.server.request_fields import MOST_WORDS, SamplingFields
from gptoss_dist.server.sampling import MOST_LOGPROBS, check_count
from gptoss_dist.server.served_model import ServedModel

_MEDIA = ("image", "image_url", "input_image", "input_audio", "audio", "video", "video_url", "file", "input_file")


class ChatRequest(SamplingFields):
    """OpenAI's fields; `reasoning_effort` is low, medium or high for gpt-oss."""

    messages: list[dict[str, Any]] = Field(min_length=1, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    reasoning_effort: Literal["low", "medium", "high"] | None = None
    tools: list[dict[str, Any]] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = Field(None, max_length=MOST_WORDS)
    metadata: dict[str, Any] | None = None
    functions: list[Any] | None = Field(None, json_schema_extra={"deprecated": True})
    function_call: str | dict[str, Any] | None = Field(None, json_schema_extra={"deprecated": True})
    audio: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None

    @property
    def most_tokens(self) -> int | None:
        """Tokens of the answer, its reasoning too; None: as many as fit."""
        given = [one for one in (self.max_completion_tokens, self.max_tokens) if one is not None]
        return min(given, default=None)

    @property
    def offer(self) -> Offer:
        """The functions that the model is told of, and which it has to call. Raises ApiError (400)."""
        return offer_of(self.tools or [], self.tool_choice)

    @property
    def offered_names(self) -> list[str]:
        """Of these functions; call it once the prompt is rendered, which checks them."""
        return self.offer.names

    @property
    def wanted_logprobs(self) -> int | None:
        """How many likeliest tokens to report beside the chosen one; None: no log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def check(self) -> None:
        """Raise ApiError for what gpt-oss cannot do, and for fields that contradict each other."""
        self.check_stream_options()
        self.check_elsewhere()
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs=true.", param="top_logprobs")
        if any(one != "text" for one in self.modalities or []):
            raise unsupported("modalities", "gpt-oss writes text only: modalities is ['text'].")
        for name in ("audio", "web_search_options"):
            if getattr(self, name) is not None:
                raise unsupported(name, f"{name} is not supported: gpt-oss reads and writes text only.")
        if self.functions is not None or self.function_call not in (None, "none", "auto"):
            raise unsupported("functions", "functions and function_call are not supported; send tools and tool_choice.")
        check_choice(self.tools or (), self.tool_choice)


def prompt_of(body: ChatRequest, model: ServedModel) -> list[int]:
    """The prompt's tokens. Raises ApiError (400) naming the message. Long ones take long: call it in a thread."""
    check_count(len(body.messages), model.context, "messages")
    for index, message in enumerate(body.messages):
        _check_content(index, message.get("content"))
    options = PromptOptions(
        reasoning_effort=body.reasoning_effort or model.generation.reasoning_effort.value,
        current_date=date_of(model.date),
        tools=body.offer.tools,
        response_format=body.response_format,
    )
    try:
        return render([renderable(message) for message in body.messages], options)
    except PromptError as error:
        raise from_error(error) from None


def date_of(date: str | None) -> str | None:
    """`today` as a date; anything else as it is."""
    return datetime.datetime.now().astimezone().date().isoformat() if date == "today" else date


def _check_content(index: int, content: Any) -> None:
    """Images and sounds are refused by their own error, before the prompt is rendered."""
    if not isinstance(content, list):
        return
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in _MEDIA:
            raise unsupported(
                f"messages.[{index}].content.[{number}].type",
                f"messages[{index}]: content[{number}] is {kind!r}, and gpt-oss reads text only. Send text parts.",
            )
