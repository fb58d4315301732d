"""What an engine is asked for, and what it answers: token ids only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from gptoss_dist.errors import ConfigError, DoesNotFitError

if TYPE_CHECKING:
    import torch


class ConstraintState(Protocol):
    """Where a constraint stands in one output."""

    def allowed(self) -> torch.Tensor | None:
        """Which tokens may come next: bool [vocabulary], on any device; None for all of them."""

    def accept(self, token: int) -> None:
        """The token that came next; it was allowed."""


class Constraint(Protocol):
    """Masks tokens, a grammar for example. It is pickled to all ranks and asked on the one that decides.

    A GptOssDistError, of it or of its state, is logged and ends its request with `Finish.blocked`.
    """

    def start(self, prompt: tuple[int, ...]) -> ConstraintState:
        """The state before the first token after `prompt`."""


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one request are chosen. `temperature=0` is greedy and reads no other field of chance."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    seed: int = 0
    stop_tokens: tuple[int, ...] = ()
    """A token of these ends the request; it is the last token of the output."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of token and what is added to its logit."""
    logprobs: int | None = None
    """Report each chosen token's log probability and those of this many likeliest ones; None: nothing."""

    @property
    def penalised(self) -> bool:
        """Whether what was said changes what is said next."""
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0, 0, 1)

    @property
    def plain(self) -> bool:
        """Whether logits are used as the model gives them."""
        return not self.penalised and not self.logit_bias

    @property
    def cuts(self) -> bool:
        """Whether some tokens are left out of the draw; greedy sampling never draws."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k is not None or self.min_p > 0)

    def __post_init__(self) -> None:
        """Refuse what no distribution can be made of: it would fail on every rank, deep in a step."""
        ranges = (
            ("max_tokens", self.max_tokens >= 1, "1 or more"),
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, up to 1"),
            ("top_k", self.top_k is None or self.top_k >= 1, "1 or more, or None"),
            ("min_p", 0 <= self.min_p < 1, "0 up to 1"),
            ("seed", 0 <= self.seed < 2**63, "0 up to 2**63"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "-2 up to 2"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "-2 up to 2"),
            ("repetition_penalty", 0 < self.repetition_penalty <= 10, "above 0, up to 10"),
            ("logprobs", self.logprobs is None or self.logprobs >= 0, "0 or more, or None"),
        )
        for name, holds, wanted in ranges:
            if not holds:
                raise ConfigError(f"sampling: {name}={getattr(self, name)}: must be {wanted}.")
        for token, bias in self.logit_bias:
            if not math.isfinite(bias):
                raise ConfigError(f"sampling: logit_bias: {bias} for token {token}: must be a finite number.")
        twice = [token for token, times in Counter(token for token, _ in self.logit_bias).items() if times > 1]
        if twice:
            raise ConfigError(f"sampling: logit_bias: token {twice[0]} comes twice. Give each token one bias.")


@dataclass(frozen=True)
class Request:
    """One prompt. `id` is the caller's and unique among the requests that are not finished."""

    id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    constraint: Constraint | None = field(default=None, compare=False, repr=False)
    """Masks the tokens of the output one by one; when it allows none, the request ends with `Finish.blocked`."""

    @property
    def quick(self) -> bool:
        """Whether a token can be chosen shard by shard: from nothing but the model's logits and the temperature."""
        sampling = self.sampling
        return sampling.plain and not sampling.cuts and sampling.logprobs is None and self.constraint is None

    def __post_init__(self) -> None:
        """Refuse a prompt without tokens: there would be nothing to continue."""
        if not self.prompt:
            raise ConfigError(f"request {self.id}: the prompt has no tokens. Give it at least one.")


@dataclass(frozen=True)
class Row:
    """Whose token is chosen in a step."""

    request: Request
    tokens: Sequence[int]
    """Prompt and output so far. Looked at when the request chooses its first token, and need not be known later."""


def check_request(request: Request, vocabulary: int, context: int) -> None:
    """Refuse, alone, what would end the other requests too or could never be finished.

    Raises ConfigError for a token that the model does not have, or more log probabilities than it has tokens,
    DoesNotFitError for more tokens than the model's `context`.
    """
    biased = [token for token, _ in request.sampling.logit_bias]
    for where, named in (("", request.prompt), ("logit_bias: ", biased)):
        if wrong := [token for token in named if not 0 <= token < vocabulary]:
            raise ConfigError(
                f"request {request.id}: {where}token {wrong[0]} is outside the model's vocabulary of {vocabulary}."
            )
    if (request.sampling.logprobs or 0) > vocabulary:
        raise ConfigError(
            f"request {request.id}: logprobs={request.sampling.logprobs}: the model has {vocabulary} tokens. "
            "Ask for fewer."
        )
    if len(request.prompt) >= context:
        raise DoesNotFitError(
            f"request {request.id}: the prompt has {len(request.prompt)} tokens, and the model's context is {context}, "
            "which leaves none for an answer. Shorten the prompt."
        )
    tokens = len(request.prompt) + request.sampling.max_tokens
    if tokens > context:
        raise DoesNotFitError(
            f"request {request.id}: {len(request.prompt)} prompt tokens and up to {request.sampling.max_tokens} "
            f"new ones are {tokens}, and the model's context is {context}. Shorten the prompt or lower "
            "generation.max_new_tokens."
        )


class Finish(Enum):
    """Why a request ended."""

    stop = "stop"
    length = "length"
    cancelled = "cancelled"
    blocked = "blocked"
    """Its constraint allowed no token, or failed; the output ends before."""


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of probabilities before temperature, penalties and cuts.

    Of the chosen token, and of the likeliest ones.
    """

    chosen: float
    top: tuple[tuple[int, float], ...]
    """(token, log probability), the likeliest first."""


@dataclass(frozen=True)
class Event:
    """New tokens of one request, in order; `finish` is set on its last event and only there."""

    request_id: str
    tokens: tuple[int, ...]
    finish: Finish | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each token, if the request asked for them."""
    cached: int = 0
    """On the first event: tokens of the prompt that were found in the cache."""
