"""Answers as OpenAI's Chat Completions writes them: plain dictionaries, ready for JSON.

reasoning is given twice, as `reasoning` and as `reasoning_content`: clients read the one or the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_dist.harmony.header import FIRST_CONTROL
from gptoss_dist.server.answer import AnswerReader, Call, Kind, Piece
from gptoss_dist.server.shown_text import Chosen
from gptoss_dist.server.token_text import finite, token_bytes, token_text


@dataclass(frozen=True)
class Head:
    """What all parts of one answer have in common."""

    id: str
    created: int
    model: str
    fingerprint: str

    def completion(self, choices: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        """A whole `chat.completion`."""
        return {**self._fields("chat.completion"), "choices": choices, "usage": usage}

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> dict[str, Any]:
        """A `chat.completion.chunk`; the last one may carry the usage and no choice."""
        chunk = {**self._fields("chat.completion.chunk"), "choices": choices}
        return chunk if usage is None else {**chunk, "usage": usage}

    def _fields(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def usage_of(prompt_tokens: int, readers: Sequence[AnswerReader], cached: int = 0) -> dict[str, Any]:
    """Tokens of one prompt and of all its answers; `cached` of the prompt were found in the cache."""
    completion = sum(one.tokens for one in readers)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": sum(one.reasoning_tokens for one in readers)},
    }


def choice_of(index: int, reader: AnswerReader, chosen: Sequence[Chosen] | None) -> dict[str, Any]:
    """A whole choice. `chosen`: the tokens of the content, if log probabilities were asked for."""
    content = reader.content
    message: dict[str, Any] = {
        "role": "assistant",
        "content": content if content is not None or reader.calls else "",
        "refusal": None,
    }
    if reader.reasoning is not None:
        message |= {"reasoning": reader.reasoning, "reasoning_content": reader.reasoning}
    if reader.calls:
        message["tool_calls"] = [call_of(call) for call in reader.calls]
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs_of(chosen),
        "finish_reason": reader.finish_reason,
    }


def call_of(call: Call) -> dict[str, Any]:
    """A whole tool call."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def delta_of(piece: Piece, calls: Sequence[Call]) -> dict[str, Any]:
    """A piece as the delta of a chunk; the first piece of a call introduces it."""
    if piece.kind is Kind.reasoning:
        return {"reasoning": piece.text, "reasoning_content": piece.text}
    if piece.kind is Kind.content:
        return {"content": piece.text}
    assert piece.call is not None
    if piece.text:
        return {"tool_calls": [{"index": piece.call, "function": {"arguments": piece.text}}]}
    call = calls[piece.call]
    function = {"name": call.name, "arguments": ""}
    return {"tool_calls": [{"index": piece.call, "id": call.id, "type": "function", "function": function}]}


def chunk_choice(
    index: int, delta: dict[str, Any], chosen: Sequence[Chosen] | None = None, finish: str | None = None
) -> dict[str, Any]:
    """A choice of a chunk."""
    return {"index": index, "delta": delta, "logprobs": logprobs_of(chosen), "finish_reason": finish}


def logprobs_of(chosen: Sequence[Chosen] | None) -> dict[str, Any] | None:
    """Log probabilities of the content's tokens; None where none were asked for."""
    if chosen is None:
        return None
    return {"content": [_token(one) for one in chosen], "refusal": None}


def _token(chosen: Chosen) -> dict[str, Any]:
    """A token and its likeliest alternatives, those that stand for no text left out."""
    top = [_alternative(token, value) for token, value in chosen.logprobs.top if token < FIRST_CONTROL]
    return {**_alternative(chosen.token, chosen.logprobs.chosen), "top_logprobs": top}


def _alternative(token: int, logprob: float) -> dict[str, Any]:
    return {"token": token_text(token), "logprob": finite(logprob), "bytes": list(token_bytes(token))}
