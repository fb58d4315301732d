"""From a request's fields and the server's defaults to the engine's sampling."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from gptoss_dist.engine.request import Constraint, Request, Sampling
from gptoss_dist.server.api_error import ApiError, unsupported
from gptoss_dist.server.request_fields import SamplingFields
from gptoss_dist.server.served_model import ServedModel

MOST_LOGPROBS = 20
_BIAS = 100.0
_LEAST_TOKENS = 4
"""Of a message: `<|start|>`, its role, `<|message|>`, `<|end|>`."""


def requests_of(
    base_id: str,
    prompt: Sequence[int],
    fields: SamplingFields,
    model: ServedModel,
    *,
    max_tokens: int | None,
    stop_tokens: tuple[int, ...],
    logprobs: int | None,
    param: str = "messages",
    constraint: Constraint | None = None,
) -> list[Request]:
    """One request for each choice, with ids `BASE-0`, `BASE-1`, … and seeds that follow each other.

    `param` names the field that the prompt came in. Raises ApiError (400) where prompt and answer exceed the context.
    """
    room = room_for(len(prompt), max_tokens, model.context, param)
    shared = sampling_fields(fields, model)
    seed = _seed(fields.seed if fields.seed is not None else model.generation.seed)
    ends = () if _never_ends(fields, room) else stop_tokens
    requests = []
    for index in range(fields.choices):
        sampling = Sampling(max_tokens=room, seed=(seed + index) % 2**63, stop_tokens=ends, logprobs=logprobs, **shared)
        requests.append(Request(f"{base_id}-{index}", tuple(prompt), sampling, constraint))
    return requests


def room_for(prompt_tokens: int, wanted: int | None, context: int, param: str) -> int:
    """Tokens that the answer may have: those wanted, or all that fit. Raises ApiError (400) with the numbers."""
    room = context - prompt_tokens
    if room >= 1 and (wanted is None or wanted <= room):
        return wanted or room
    tokens = f"{prompt_tokens} in the {param}" + (f" and {wanted} for the completion" if wanted is not None else "")
    total = prompt_tokens + (wanted or 1)
    raise ApiError(
        400,
        f"This model's maximum context length is {context} tokens. You asked for {total} tokens: {tokens}. "
        f"Shorten the {param} or the completion.",
        param=param,
        code="context_length_exceeded",
    )


def check_count(messages: int, context: int, param: str) -> None:
    """Raise ApiError (400) for more messages than can fit, before they are rendered: 180,000 of them take 15 s."""
    if messages * _LEAST_TOKENS > context:
        raise ApiError(
            400,
            f"This model's maximum context length is {context} tokens. The {messages} entries of {param} take at least "
            f"{messages * _LEAST_TOKENS}. Shorten the {param}.",
            param=param,
            code="context_length_exceeded",
        )


def sampling_fields(fields: SamplingFields, model: ServedModel) -> dict[str, Any]:
    """Keyword arguments of `Sampling` that say how tokens are chosen."""
    defaults = model.generation

    def pick(value: Any, default: Any) -> Any:
        return default if value is None else value

    top_k = pick(fields.top_k, defaults.top_k)
    return {
        "temperature": float(pick(fields.temperature, defaults.temperature)),
        "top_p": float(pick(fields.top_p, defaults.top_p)),
        "top_k": top_k if top_k is not None and top_k > 0 else None,
        "min_p": float(pick(fields.min_p, defaults.min_p)),
        "presence_penalty": float(pick(fields.presence_penalty, 0.0)),
        "frequency_penalty": float(pick(fields.frequency_penalty, 0.0)),
        "repetition_penalty": float(pick(fields.repetition_penalty, 1.0)),
        "logit_bias": _bias(fields.logit_bias or {}, model.vocabulary),
    }


def _bias(bias: dict[str, float], vocabulary: int) -> tuple[tuple[int, float], ...]:
    pairs: dict[int, float] = {}
    for name, value in bias.items():
        if not (name.isascii() and name.isdigit() and len(name) < 10 and int(name) < vocabulary):
            raise ApiError(
                400,
                f"logit_bias: {name[:40]!r} is no token; the vocabulary has {vocabulary}, counted from 0.",
                param="logit_bias",
            )
        if not -_BIAS <= value <= _BIAS:
            raise ApiError(400, f"logit_bias: {value} for token {name}; -100 to 100.", param="logit_bias")
        if int(name) in pairs:
            raise ApiError(400, f"logit_bias: token {int(name)} comes twice, as {name!r} too.", param="logit_bias")
        pairs[int(name)] = float(value)
    return tuple(pairs.items())


def _seed(seed: int | None) -> int:
    """A seed that the engine takes; drawn where none is given."""
    return secrets.randbelow(2**31) if seed is None else seed % 2**63


def _never_ends(fields: SamplingFields, max_tokens: int) -> bool:
    """Whether only max_tokens ends the answer."""
    least = fields.min_tokens or 0
    if least > max_tokens:
        raise ApiError(400, f"min_tokens={least} is above max_tokens={max_tokens}.", param="min_tokens")
    if 0 < least < max_tokens and not fields.ignore_eos:
        raise unsupported("min_tokens", f"min_tokens is 0 or max_tokens ({max_tokens}) here; or send ignore_eos.")
    return bool(fields.ignore_eos) or 0 < least == max_tokens
