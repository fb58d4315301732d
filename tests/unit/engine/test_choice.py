"""Tokens chosen on one rank; tests/multi has the vocabulary cut over several."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch

from gptoss_dist.engine.choice import Chooser, Row
from gptoss_dist.engine.logits import Logits
from gptoss_dist.engine.penalties import adjust
from gptoss_dist.engine.request import Request, Sampling
from gptoss_dist.engine.sampler import Draw, choose
from gptoss_dist.errors import ConfigError, GptOssDistError
from gptoss_dist.runtime.mesh import Ranks

CPU, V = torch.device("cpu"), 50
ALONE = Ranks(1, 1, 0, 0, None)
KINDS: list[dict[str, object]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.7, "top_p": 0.8},
    {"top_k": 4},
    {"temperature": 0.0, "logprobs": 2},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"repetition_penalty": 1.5, "temperature": 0.0},
    {"logit_bias": ((3, 5.0),), "logprobs": 0},
    {"logprobs": 5, "temperature": 2.0},
]


@dataclass
class Only:
    """Allows `tokens`, one set after the other, and remembers what it was told."""

    tokens: tuple[tuple[int, ...], ...]
    accepted: list[int] = field(default_factory=list)

    def start(self, prompt: tuple[int, ...]) -> Only:
        return self

    def allowed(self) -> torch.Tensor:
        mask = torch.zeros(V, dtype=torch.bool)
        mask[list(self.tokens[len(self.accepted)])] = True
        return mask

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def draw_of(rows: list[Row]) -> Draw:
    samplings = [row.request.sampling for row in rows]
    return Draw(
        torch.tensor([one.temperature for one in samplings]),
        torch.tensor([one.seed for one in samplings]),
        torch.tensor([len(row.tokens) for row in rows]),
    )


def make_rows(count: int) -> list[Row]:
    rows = []
    for number in range(count):
        sampling = Sampling(**{"max_tokens": 99, "seed": number, **KINDS[number % len(KINDS)]})
        prompt = tuple(range(number % 5 + 1))
        rows.append(Row(Request(str(number), prompt, sampling), [*prompt, *([7, 7, 9] * (number % 3))]))
    return rows


def logits_of(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, V, generator=torch.Generator().manual_seed(seed)) * 3


def test_every_kind_of_request_gets_what_it_gets_alone():
    rows, logits_RV = make_rows(36), logits_of(36)
    chooser = Chooser(ALONE, CPU)
    tokens, logprobs = chooser.choose(rows, Logits(logits_RV.clone()), draw_of(rows)).wait("step 1")
    for row, logits_V, token in zip(rows, logits_RV, tokens, strict=True):
        request, output = row.request, row.tokens[len(row.request.prompt) :]
        changed_V = adjust(logits_V, request.sampling, request.prompt, output)
        assert token == int(choose(changed_V, request.sampling, len(row.tokens)))
        alone = chooser.choose([row], Logits(logits_V.unsqueeze(0)), draw_of([row])).wait("step 1")
        assert alone[0] == [token]
        assert (request.id in logprobs) == (request.sampling.logprobs is not None)
        if request.id in logprobs:
            reference = logits_V.log_softmax(dim=-1)
            assert logprobs[request.id].chosen == pytest.approx(float(reference[token]), abs=1e-5)
            top = reference.topk(request.sampling.logprobs)
            assert [token for token, _ in logprobs[request.id].top] == top.indices.tolist()


def test_rows_of_padding_change_nothing():
    rows, logits_RV = make_rows(9), logits_of(9)
    chooser = Chooser(ALONE, CPU)
    padded_RV = torch.cat((logits_RV, torch.full((7, V), math.nan)))
    found = chooser.choose(rows, Logits(padded_RV), draw_of(rows)).wait("step 1")
    assert found == chooser.choose(rows, Logits(logits_RV), draw_of(rows)).wait("step 1")


@pytest.mark.parametrize("number", range(len(KINDS)), ids=lambda number: str(KINDS[number]))
def test_logits_that_are_not_numbers_are_an_error_that_names_step_and_request(number):
    rows, logits_RV = make_rows(len(KINDS)), logits_of(len(KINDS))
    logits_RV[number, 11] = math.nan
    chosen = Chooser(ALONE, CPU).choose(rows, Logits(logits_RV), draw_of(rows))
    with pytest.raises(GptOssDistError, match=rf"step 7, request {number}: .* are NaN"):
        chosen.wait("step 7")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_constraint_masks_and_is_told_what_came(temperature):
    constraint = Only(((5,), (1, 2), ()))
    request = Request("a", (1,), Sampling(9, temperature=temperature, top_p=0.9), constraint=constraint)
    chooser, tokens = Chooser(ALONE, CPU), [1]
    for wanted in ({5}, {1, 2}, {None}):
        row = [Row(request, tokens)]
        [token], _ = chooser.choose(row, Logits(logits_of(1, len(tokens))), draw_of(row)).wait("step 1")
        assert token in wanted
        if token is not None:
            chooser.accept(request, token)
            tokens.append(token)
    assert constraint.accepted == tokens[1:]


def test_a_constraint_that_allows_everything_changes_nothing():
    class Free(Only):
        def allowed(self) -> None:
            return None

    for seed in range(5):
        plain = Row(Request("a", (1,), Sampling(9, seed=seed)), [1])
        free = Row(Request("b", (1,), Sampling(9, seed=seed), constraint=Free(())), [1])
        rows = [plain, free]
        logits_RV = logits_of(1, seed).expand(2, -1)
        tokens, _ = Chooser(ALONE, CPU).choose(rows, Logits(logits_RV), draw_of(rows)).wait("step 1")
        assert tokens[0] == tokens[1]


def test_a_mask_of_another_shape_is_refused():
    class Wrong(Only):
        def allowed(self) -> torch.Tensor:
            return torch.ones(V + 1, dtype=torch.bool)

    row = [Row(Request("a", (1,), Sampling(9), constraint=Wrong(())), [1])]
    with pytest.raises(ConfigError, match=r"request a: its constraint gives torch.bool of shape \(51,\).*\(50,\)"):
        Chooser(ALONE, CPU).choose(row, Logits(logits_of(1)), draw_of(row))


def test_a_constraint_is_forgotten_with_its_request():
    starts = []

    class Counted(Only):
        def start(self, prompt: tuple[int, ...]) -> Only:
            starts.append(prompt)
            return self

    request = Request("a", (4,), Sampling(9), constraint=Counted(((1,), (1,))))
    chooser, row = Chooser(ALONE, CPU), [Row(request, [4])]
    for _ in range(2):
        chooser.choose(row, Logits(logits_of(1)), draw_of(row))
    assert starts == [(4,)]
    chooser.forget("a")
    chooser.choose(row, Logits(logits_of(1)), draw_of(row))
    assert starts == [(4,), (4,)]
