"""The next token of every row of a step, the same on every rank of a replica, without the host waiting for the device.

    quick rows     shard ─► best of the shard ─► all-gather of (score, token) ─► best of all      temperature only
    careful rows   gather where they are cut ─► changes ─► the same draw, on the first rank       everything else

A row is quick or careful by its own request, never by its neighbours, and draws by the same noise on both ways. Both
end in one tensor of tokens, which the first rank sends to the others where they did not find it by the same numbers.

Shape legend: R rows that choose a token, L rows of them that are careful.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from gptoss_dist.engine.changes import Changer, Changes
from gptoss_dist.engine.logits import Logits
from gptoss_dist.engine.logprobs import LogprobRows, Logprobs, by_request, logprob_rows_of, logprobs_of
from gptoss_dist.engine.quick import quick_tokens
from gptoss_dist.engine.request import Request, Row, TokenLogprobs
from gptoss_dist.engine.sampler import Draw, Drawing, drawing_on
from gptoss_dist.engine.staging import Readback, Staging
from gptoss_dist.errors import LogitsError
from gptoss_dist.runtime.mesh import Ranks

NOT_A_NUMBER = -1
"""In place of a token: the logits of its row were not numbers."""
NOTHING_ALLOWED = -2
"""In place of a token: the constraint of its request allows none."""
_BUFFERS = 16
"""More than are sent from in two steps, so that none is waited for."""


@dataclass(frozen=True)
class _Careful:
    """The careful rows of a step. They are the same for many steps."""

    places: tuple[int, ...]
    """Which of R."""
    requests: tuple[Request, ...]
    places_L: torch.Tensor
    """int64: the places, on the device."""
    logprobs: LogprobRows | None
    changes: Changes | None
    """None on ranks that do not decide."""

    def are(self, places: Sequence[int], rows: Sequence[Row]) -> bool:
        """Whether they are those of another step."""
        return self.places == tuple(places) and all(
            one is row.request for one, row in zip(self.requests, rows, strict=True)
        )


class Chosen:
    """The tokens of one step, and their log probabilities where asked for, on their way to the host."""

    def __init__(
        self,
        rows: Sequence[Row],
        tokens_R: torch.Tensor,
        wanted: LogprobRows | None = None,
        logprobs: Logprobs | None = None,
    ) -> None:
        """Start the copy."""
        self.tokens_R = tokens_R
        """int64, on the device; NOT_A_NUMBER or NOTHING_ALLOWED where there is no token."""
        self._rows, self._wanted = rows, wanted
        self._readback = Readback(tokens_R, *(logprobs or ()))

    def is_here(self) -> bool:
        """Whether `wait` need not wait."""
        return self._readback.is_here()

    def wait(self, step: str) -> tuple[list[int | None], dict[str, TokenLogprobs]]:
        """Once they are here: a token for each row, None where none was allowed, and log probabilities by request id.

        Raises LogitsError that names `step` and the request if the model's logits were not numbers.
        """
        tokens_R, *others = self._readback.wait()
        tokens: list[int] = tokens_R.tolist()
        for row, token in zip(self._rows, tokens, strict=True):
            if token == NOT_A_NUMBER:
                raise LogitsError(
                    f"{step}, request {row.request.id}: the model's logits for the next token are NaN, or allow none. "
                    "Weights or a kernel are wrong: compare with kernels=reference and with backend=transformers."
                )
        logprobs = by_request(self._wanted, Logprobs(*others)) if self._wanted else {}
        return [None if token == NOTHING_ALLOWED else token for token in tokens], logprobs


class Chooser:
    """Chooses tokens, and on the rank that decides keeps what the choice depends on beside logits."""

    def __init__(self, ranks: Ranks, device: torch.device, drawing: Drawing | None = None) -> None:
        """No request is known yet. `drawing`: how tokens are drawn; None: the quickest on the device."""
        self._ranks = ranks
        self._drawing = drawing or drawing_on(device)
        self._staging = Staging(device, _BUFFERS)
        self._changer = Changer(self._staging, device)
        self._careful: _Careful | None = None

    def choose(self, rows: Sequence[Row], logits: Logits, draw: Draw) -> Chosen:
        """One token for each row of `logits`. Collective over the replica; asynchronous on a GPU.

        With a constraint the host has to know all tokens before: it is asked here.
        """
        careful = self._careful_rows(rows, logits.vocabulary)
        everyone = careful is not None and len(careful.places) == len(rows)
        if logits.quick_R is not None:
            tokens_R = logits.quick_R[: len(rows)]
        elif everyone:
            tokens_R = torch.empty_like(draw.position_R)
        else:
            tokens_R = quick_tokens(self._drawing, logits, draw)
        gathered_LV = None if careful is None or logits.whole else logits.gather(careful.places_L)
        if careful is not None and careful.changes is not None:
            changes, places_L = careful.changes, careful.places_L
            given = (logits.columns_RC, places_L) if gathered_LV is None else (gathered_LV, changes.all_L)
            draw_L = draw if everyone else Draw(*(part.index_select(0, places_L) for part in draw))
            tokens_L = self._carefully(*given, changes, draw_L)
            tokens_R = tokens_L if everyone else tokens_R.index_copy_(0, places_L, tokens_L)
        if self._ranks.tp > 1 and (careful is not None or logits.whole):
            dist.broadcast(tokens_R, group_src=0, group=self._ranks.tp_group)
        if careful is None or careful.logprobs is None:
            return Chosen(rows, tokens_R)
        wanted = careful.logprobs
        source, rows_W = (logits.columns_RC, wanted.places_W) if gathered_LV is None else (gathered_LV, wanted.rows_W)
        tokens_W = tokens_R.index_select(0, wanted.places_W)
        return Chosen(rows, tokens_R, wanted, logprobs_of(source.index_select(0, rows_W), tokens_W, wanted.most))

    def accept(self, request: Request, token: int) -> None:
        """Tell a constraint, on the rank that decides, which token came."""
        self._changer.accept(request, token)

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        self._changer.forget(request_id)
        if self._careful is not None and any(request.id == request_id for request in self._careful.requests):
            self._careful = None

    def _carefully(self, logits_RV: torch.Tensor, rows_L: torch.Tensor, changes: Changes, draw_L: Draw) -> torch.Tensor:
        """The tokens of careful rows."""
        changed_LV, blocked_L = self._changer.change(logits_RV, rows_L, changes)
        _, tokens_L = self._drawing.best_of_shard(changed_LV, 0, *draw_L)
        if blocked_L is not None:
            tokens_L = tokens_L.masked_fill(blocked_L, NOTHING_ALLOWED)
        self._changer.count(tokens_L, changes)
        return tokens_L

    def _careful_rows(self, rows: Sequence[Row], vocabulary: int) -> _Careful | None:
        """Those of a step; None if all rows are quick."""
        places = [number for number, row in enumerate(rows) if not row.request.quick]
        if not places:
            return None
        chosen = [rows[number] for number in places]
        if self._careful is None or not self._careful.are(places, chosen):
            [places_L] = self._staging.send([(torch.int64, places)])
            self._careful = _Careful(
                tuple(places),
                tuple(row.request for row in chosen),
                places_L,
                logprob_rows_of(chosen, places, self._staging),
                self._changer.changes(chosen, vocabulary) if self._ranks.leads_replica else None,
            )
        return self._careful
