"""Penalties for what was said: a table on the device, which a step reads and counts its tokens in.

Presence and frequency penalties as OpenAI's API defines them (subtracted, over the output); the repetition penalty of
CTRL (arXiv:1909.05858: positive logits divided, negative ones multiplied, over prompt and output).

    first token of a request ─► a row of the table, from its tokens   every token after ─► counted where it was chosen

The host need not know what was chosen, and a request that gives way keeps its row: nothing is built anew.

Shape legend: L careful rows of a step, P of them with penalties, S rows of the table, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from gptoss_dist.engine.request import Row
from gptoss_dist.engine.staging import Staging


class Penalties(NamedTuple):
    """Of P of the careful rows of a step."""

    rows_P: torch.Tensor
    """int64: which of L."""
    said_P: torch.Tensor
    """int64: their rows of the table."""
    presence_P1: torch.Tensor
    """float32."""
    frequency_P1: torch.Tensor
    repetition_P1: torch.Tensor


class Said:
    """Which tokens are in the prompt, and how often each is in the output, of requests with penalties."""

    def __init__(self, staging: Staging, device: torch.device) -> None:
        """No request has a row; the table is made with the first one."""
        self._staging = staging
        self._prompt_SV = torch.zeros(0, 0, dtype=torch.bool, device=device)
        self._count_SV = torch.zeros(0, 0, dtype=torch.int32, device=device)
        self._row_of: dict[str, int] = {}
        self._free: list[int] = []

    def penalties(self, rows: Sequence[Row], vocabulary: int) -> Penalties | None:
        """Those of the careful rows of a step; None if no request has any. A request that is new gets its row."""
        penalised = [number for number, row in enumerate(rows) if row.request.sampling.penalised]
        if not penalised:
            return None
        requests = [rows[number].request for number in penalised]
        self._take_in([rows[number] for number in penalised], vocabulary)
        samplings = [request.sampling for request in requests]
        rows_P, said_P, presence_P, frequency_P, repetition_P = self._staging.send([
            (torch.int64, penalised),
            (torch.int64, [self._row_of[request.id] for request in requests]),
            (torch.float32, [one.presence_penalty for one in samplings]),
            (torch.float32, [one.frequency_penalty for one in samplings]),
            (torch.float32, [one.repetition_penalty for one in samplings]),
        ])  # fmt: skip
        return Penalties(rows_P, said_P, presence_P.unsqueeze(1), frequency_P.unsqueeze(1), repetition_P.unsqueeze(1))

    def penalise(self, logits_LV: torch.Tensor, penalties: Penalties) -> None:
        """Change the logits by what was said so far."""
        count_PV = self._count_SV.index_select(0, penalties.said_P)
        spoken_PV = count_PV > 0
        said_PV = self._prompt_SV.index_select(0, penalties.said_P).logical_or_(spoken_PV)
        logits_PV, factor_P1 = logits_LV.index_select(0, penalties.rows_P), penalties.repetition_P1
        logits_PV.div_(torch.where(said_PV & (logits_PV > 0), factor_P1, 1.0))
        logits_PV.mul_(torch.where(said_PV & (logits_PV < 0), factor_P1, 1.0))
        logits_PV -= (penalties.frequency_P1 * count_PV).add_(penalties.presence_P1 * spoken_PV)
        logits_LV.index_copy_(0, penalties.rows_P, logits_PV)

    def count(self, penalties: Penalties, tokens_L: torch.Tensor) -> None:
        """One more token of each request; a token below 0 is none."""
        tokens_P, counts = tokens_L.index_select(0, penalties.rows_P), self._count_SV
        places_P = penalties.said_P * counts.shape[1] + tokens_P.clamp(min=0)
        counts.view(-1).index_add_(0, places_P, (tokens_P >= 0).to(counts.dtype))

    def forget(self, request_id: str) -> None:
        """The request has ended: its row is free."""
        if request_id in self._row_of:
            self._free.append(self._row_of.pop(request_id))

    def _take_in(self, rows: Sequence[Row], vocabulary: int) -> None:
        """Rows of the table for the requests that have none, filled with their tokens so far."""
        new = [row for row in rows if row.request.id not in self._row_of]
        if not new:
            return
        prompts: list[int] = []
        outputs: list[int] = []
        for row in new:
            if not self._free:
                self._grow(vocabulary)
            number = self._row_of[row.request.id] = self._free.pop()
            begin = number * vocabulary
            prompts.extend(begin + token for token in row.request.prompt)
            outputs.extend(begin + token for token in row.tokens[len(row.request.prompt) :])
        begun = [self._row_of[row.request.id] for row in new]
        begun_N, prompts_N, outputs_N = self._staging.send([(torch.int64, part) for part in (begun, prompts, outputs)])
        self._prompt_SV.index_fill_(0, begun_N, False).view(-1).index_fill_(0, prompts_N, True)
        self._count_SV.index_fill_(0, begun_N, 0).view(-1).index_add_(
            0, outputs_N, torch.ones_like(outputs_N, dtype=self._count_SV.dtype)
        )

    def _grow(self, vocabulary: int) -> None:
        """Twice as many rows; those there are stay."""
        rows = len(self._prompt_SV)
        more = max(rows, 1)
        self._free.extend(range(rows + more - 1, rows - 1, -1))
        self._prompt_SV, self._count_SV = (
            torch.cat((table_SV.view(rows, vocabulary), table_SV.new_zeros(more, vocabulary)))
            for table_SV in (self._prompt_SV, self._count_SV)
        )
