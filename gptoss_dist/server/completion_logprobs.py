"""Log probabilities in the form of OpenAI's /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptoss_dist.harmony.header import FIRST_CONTROL
from gptoss_dist.server.shown_text import Chosen, Shown
from gptoss_dist.server.token_text import finite, token_text


def logprobs_of(pieces: Sequence[Shown]) -> dict[str, Any]:
    """OpenAI's older form: parallel lists; of several tokens that decode alike, the likeliest is kept."""
    chosen: list[Chosen] = [one for piece in pieces for one in piece.chosen]
    tops = []
    for one in chosen:
        top: dict[str, float] = {}
        for token, value in one.logprobs.top:
            if token < FIRST_CONTROL:
                top.setdefault(token_text(token), finite(value))
        top.setdefault(token_text(one.token), finite(one.logprobs.chosen))
        tops.append(top)
    return {
        "tokens": [token_text(one.token) for one in chosen],
        "token_logprobs": [finite(one.logprobs.chosen) for one in chosen],
        "top_logprobs": tops,
        "text_offset": [offset for piece in pieces for offset in piece.offsets],
    }
