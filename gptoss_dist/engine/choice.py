"""The next token of every row of a step, the same on every rank of a replica, without the host waiting for the device.

    quick rows     shard ─► best of the shard ─► all-gather of (score, token) ─► best of all      temperature only
    careful rows   gather ─► penalties ─► constraint ─► cuts ─► the same draw, on the first rank   everything else

A row is quick or careful by its own request, never by its neighbours, and draws by the same noise on both ways. Both
end in one tensor of tokens, which the first rank sends to the others where they did not find it by the same numbers.

Shape legend: R rows that choose a token, L rows of them that are careful, G ranks of the replica, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from gptoss_dist.engine.logits import Logits
from gptoss_dist.engine.penalties import adjust
from gptoss_dist.engine.quick import quick_tokens
from gptoss_dist.engine.request import ConstraintState, Request, TokenLogprobs
from gptoss_dist.engine.sampler import Draw, Drawing, drawing_on, kept
from gptoss_dist.engine.staging import Readback
from gptoss_dist.errors import ConfigError, GptOssDistError
from gptoss_dist.runtime.mesh import Ranks

NOT_A_NUMBER = -1
"""In place of a token: the logits of its row were not numbers."""
NOTHING_ALLOWED = -2
"""In place of a token: the constraint of its request allows none."""


@dataclass(frozen=True)
class Row:
    """Whose token is chosen."""

    request: Request
    tokens: Sequence[int]
    """Prompt and output so far; need not be known where the request needs no history."""


class Chosen:
    """The tokens of one step, and their log probabilities where asked for, on their way to the host."""

    def __init__(self, rows: Sequence[Row], tokens_R: torch.Tensor, logprobs: _Logprobs | None) -> None:
        """Start the copies."""
        self.tokens_R = tokens_R
        """int64, on the device; NOT_A_NUMBER or NOTHING_ALLOWED where there is no token."""
        self._rows, self._logprobs = rows, logprobs
        self._readback = Readback(tokens_R, *(logprobs.tensors() if logprobs else ()))

    def wait(self, step: str) -> tuple[list[int | None], dict[str, TokenLogprobs]]:
        """Once they are here: a token for each row, None where none was allowed, and log probabilities by request id.

        Raises GptOssDistError that names `step` and the request if the model's logits were not numbers.
        """
        tokens_R, *others = self._readback.wait()
        tokens: list[int] = tokens_R.tolist()
        for row, token in zip(self._rows, tokens, strict=True):
            if token == NOT_A_NUMBER:
                raise GptOssDistError(
                    f"{step}, request {row.request.id}: the model's logits for the next token are NaN, or allow none. "
                    "Weights or a kernel are wrong: compare with kernels=reference and with backend=transformers."
                )
        logprobs = self._logprobs.by_id(self._rows, *others) if self._logprobs else {}
        return [None if token == NOTHING_ALLOWED else token for token in tokens], logprobs


class Chooser:
    """Chooses tokens, and keeps the constraints' states on the rank that decides."""

    def __init__(self, ranks: Ranks, device: torch.device, drawing: Drawing | None = None) -> None:
        """No request is constrained yet. `drawing`: how tokens are drawn; None: the quickest on the device."""
        self._ranks, self._device = ranks, device
        self._drawing = drawing or drawing_on(device)
        self._states: dict[str, ConstraintState] = {}

    def choose(self, rows: Sequence[Row], logits: Logits, draw: Draw) -> Chosen:
        """One token for each row of `logits`. Collective over the replica; asynchronous on a GPU for quick rows."""
        count = len(rows)
        tokens_R = quick_tokens(self._drawing, logits, draw) if logits.quick_R is None else logits.quick_R
        tokens_R = tokens_R[:count]
        careful = [number for number, row in enumerate(rows) if not row.request.quick]
        logprobs = None
        if careful:
            places_L = torch.tensor(careful, device=self._device)
            logits_LV = logits.gather(places_L)
            chosen = [rows[number] for number in careful]
            if self._ranks.leads_replica:
                tokens_R[places_L] = self._carefully(chosen, logits_LV, Draw(*(part[places_L] for part in draw)))
        if self._ranks.tp > 1 and (careful or logits.whole):
            dist.broadcast(tokens_R, group_src=0, group=self._ranks.tp_group)
        if careful:
            logprobs = _Logprobs.of(careful, chosen, logits_LV, tokens_R)
        return Chosen(rows, tokens_R, logprobs)

    def accept(self, request: Request, token: int) -> None:
        """Tell a constraint, on the rank that decides, which token came."""
        if request.id in self._states:
            self._states[request.id].accept(token)

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        self._states.pop(request_id, None)

    def _carefully(self, rows: Sequence[Row], logits_LV: torch.Tensor, draw: Draw) -> torch.Tensor:
        changed = []
        blocked = [False] * len(rows)
        for number, (row, logits_V) in enumerate(zip(rows, logits_LV, strict=True)):
            prompt = row.request.prompt
            output = row.tokens[len(prompt) :] if row.request.needs_history else ()
            logits_V = adjust(logits_V, row.request.sampling, prompt, output)
            allowed_V = self._allowed(row.request, logits_V.shape[0])
            if allowed_V is not None:
                blocked[number] = not bool(allowed_V.any())
                logits_V = logits_V.masked_fill(~allowed_V.to(self._device), -torch.inf)
            changed.append(kept(logits_V, row.request.sampling))
        _, tokens_L = self._drawing.best_of_shard(torch.stack(changed), 0, *draw)
        return tokens_L.masked_fill(torch.tensor(blocked, device=self._device), NOTHING_ALLOWED)

    def _allowed(self, request: Request, vocabulary: int) -> torch.Tensor | None:
        if request.constraint is None:
            return None
        if request.id not in self._states:
            self._states[request.id] = request.constraint.start(request.prompt)
        allowed_V = self._states[request.id].allowed()
        if allowed_V is not None and (allowed_V.shape != (vocabulary,) or allowed_V.dtype != torch.bool):
            raise ConfigError(
                f"request {request.id}: its constraint gives {allowed_V.dtype} of shape {tuple(allowed_V.shape)}; "
                f"torch.bool of shape ({vocabulary},) is needed."
            )
        return allowed_V


@dataclass(frozen=True)
class _Logprobs:
    """Log probabilities of some careful rows, on the device."""

    places: list[int]
    """Rows of R that want them."""
    chosen_L: torch.Tensor
    top_values: torch.Tensor
    """[L, most wanted by a row]"""
    top_tokens: torch.Tensor

    @staticmethod
    def of(
        careful: Sequence[int], rows: Sequence[Row], logits_LV: torch.Tensor, tokens_R: torch.Tensor
    ) -> _Logprobs | None:
        wanted = [number for number, row in enumerate(rows) if row.request.sampling.logprobs is not None]
        if not wanted:
            return None
        places = [careful[number] for number in wanted]
        logprobs_LV = logits_LV[torch.tensor(wanted, device=logits_LV.device)].log_softmax(dim=-1)
        tokens_L = tokens_R[torch.tensor(places, device=tokens_R.device)].clamp(min=0)
        most = max(rows[number].request.sampling.logprobs or 0 for number in wanted)
        top = logprobs_LV.topk(most)
        return _Logprobs(places, logprobs_LV.gather(1, tokens_L.unsqueeze(1)).squeeze(1), top.values, top.indices)

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.chosen_L, self.top_values, self.top_tokens

    def by_id(
        self, rows: Sequence[Row], chosen_L: torch.Tensor, top_values: torch.Tensor, top_tokens: torch.Tensor
    ) -> dict[str, TokenLogprobs]:
        found = {}
        parts = zip(self.places, chosen_L.tolist(), top_values.tolist(), top_tokens.tolist(), strict=True)
        for place, chosen, values, tokens in parts:
            request = rows[place].request
            pairs = tuple(zip(tokens, values, strict=True))[: request.sampling.logprobs]
            found[request.id] = TokenLogprobs(chosen, pairs)
        return found
