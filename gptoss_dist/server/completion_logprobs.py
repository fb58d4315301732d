"""Log probabilities in the form of OpenAI's /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptoss_dist.harmony.header import FIRST_CONTROL
from gptoss_dist.server.answer import Chosen
from gptoss_dist.server.plain_answer import PlainPiece
from gptoss_dist.server.token_text import token_bytes

_LEAST = -9999.0
"""What OpenAI writes for a token that cannot come; JSON has no infinity."""


def logprobs_of(pieces: Sequence[PlainPiece]) -> dict[str, Any]:
    """OpenAI's older form: parallel lists; of several tokens that decode alike, the likeliest is kept."""
    chosen: list[Chosen] = [one for piece in pieces for one in piece.chosen]
    tops = []
    for one in chosen:
        top: dict[str, float] = {}
        for token, value in one.logprobs.top:
            if token < FIRST_CONTROL:
                top.setdefault(_token(token), max(value, _LEAST))
        top.setdefault(_token(one.token), max(one.logprobs.chosen, _LEAST))
        tops.append(top)
    return {
        "tokens": [_token(one.token) for one in chosen],
        "token_logprobs": [max(one.logprobs.chosen, _LEAST) for one in chosen],
        "top_logprobs": tops,
        "text_offset": [offset for piece in pieces for offset in piece.offsets],
    }


def _token(token: int) -> str:
    return token_bytes(token).decode(errors="replace")
