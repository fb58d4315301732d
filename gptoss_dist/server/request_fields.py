"""Fields that requests of several APIs share, as OpenAI's reference documents them.

Unknown fields are accepted and mean nothing, but for those of vLLM's server that would change the answer: these are
refused. Types are not converted.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from gptoss_dist.server.api_error import ApiError, unsupported
from gptoss_dist.server.generation_config import spread

LONGEST_STOP = 1024
MOST_STOPS = 16
MOST_CHOICES = 128

MOST_WORDS = 64
"""Of a list of words such as `include`."""

_FORMAT = "response_format, or text.format in the Responses API,"
_ELSEWHERE = {
    "guided_json": f"send {_FORMAT} with a json_schema.",
    "guided_regex": f"send {_FORMAT} with a pattern in a json_schema.",
    "guided_choice": f"send {_FORMAT} with an enum in a json_schema.",
    "guided_grammar": f"send {_FORMAT} with a json_schema.",
    "structured_outputs": f"send {_FORMAT} with a json_schema.",
    "stop_token_ids": "send stop with texts.",
    "bad_words": "send logit_bias.",
    "allowed_token_ids": "send logit_bias.",
    "prompt_logprobs": "there are log probabilities of the answer only.",
    "truncate_prompt_tokens": "shorten the prompt, or send truncation=auto to the Responses API.",
    "continue_final_message": "send the tokens of the prompt to /v1/completions.",
    "use_beam_search": "there is sampling only.",
}
"""Fields of vLLM's server that change the answer, and what there is here."""


def AtMost(most: int) -> BeforeValidator:  # noqa: N802  stands where pydantic's own constraints do
    """A bound of a dictionary that is looked at first: pydantic's own comes after every entry, each perhaps wrong."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > most:
            raise PydanticCustomError("too_long", f"{len(value)} entries; at most {most} are allowed")
        return value

    return BeforeValidator(check)


StopText = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]


class Fields(BaseModel):
    """What every request model is made of."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=())


class StreamOptions(Fields):
    """Options of a stream."""

    include_usage: bool | None = None


class SamplingFields(Fields):
    """How tokens are chosen; null is as if the field were not there."""

    model: str | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31, description="0 and -1: no cut.")
    min_p: float | None = Field(None, ge=0, lt=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    logit_bias: Annotated[dict[str, float] | None, AtMost(4096)] = Field(None, max_length=4096)
    stop: StopText | Annotated[list[StopText], Field(max_length=MOST_STOPS)] | None = None
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    max_tokens: int | None = Field(None, ge=1)
    ignore_eos: bool | None = Field(None, description="Go on to max_tokens; the answer's end ends nothing.")
    min_tokens: int | None = Field(None, ge=0)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    generation_config: str | None = Field(None, description="transformers' GenerationConfig as JSON text.")

    @model_validator(mode="before")
    @classmethod
    def _spread(cls, body: Any) -> Any:
        return spread(body)

    @property
    def stops(self) -> list[str] | None:
        """The stop texts as a list; None if the request does not say."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def choices(self) -> int:
        """How many answers are wanted."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_elsewhere(self) -> None:
        """Raise ApiError for what another server knows and this one would leave undone."""
        for name, instead in _ELSEWHERE.items():
            if (self.model_extra or {}).get(name):
                raise unsupported(name, f"{name} is not supported: {instead}")

    def check_stream_options(self) -> None:
        """Raise ApiError for options of a stream without a stream, as OpenAI does."""
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options goes with stream=true only.", param="stream_options")


def describe(error: dict[str, Any]) -> tuple[str, str | None]:
    """One of pydantic's complaints: (a message, the name of the field as OpenAI writes it)."""
    loc = error["loc"][1:] if error["loc"][:1] in (("body",), ("query",), ("path",)) else error["loc"]
    place = [part for part in loc if not _is_branch(part)]
    param = ".".join(f"[{part}]" if isinstance(part, int) else str(part) for part in place)
    message = str(error["msg"])
    return (f"{param}: {message}" if param else message), param or None


def _is_branch(part: int | str) -> bool:
    """Whether a part of a place names one of several types, such as `list[constrained-str]`, and no field."""
    return isinstance(part, str) and (not part.isidentifier() or part in ("str", "int", "float", "bool"))
