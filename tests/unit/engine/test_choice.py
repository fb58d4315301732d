"""Tokens chosen on one rank; tests/multi has the vocabulary cut over several."""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass, field

import one_row
import pytest
import torch
from careful_rows import KINDS, draw_of, make_rows
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss_dist.engine.choice import Chooser
from gptoss_dist.engine.logits import Logits
from gptoss_dist.engine.request import Request, Row, Sampling
from gptoss_dist.errors import GptOssDistError, LogitsError
from gptoss_dist.runtime.mesh import Ranks

CPU, V = torch.device("cpu"), 50
ALONE = Ranks(1, 1, 0, 0, None)


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


class Calls(TorchDispatchMode):
    """What torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def logits_of(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, V, generator=torch.Generator().manual_seed(seed)) * 3


def alone(row: Row, logits_V: torch.Tensor) -> int:
    """What the reference chooses."""
    prompt = row.request.prompt
    return one_row.choose(logits_V, row.request.sampling, prompt, row.tokens[len(prompt) :])


def test_every_kind_of_request_gets_what_it_gets_alone():
    rows, logits_RV = make_rows(40), logits_of(40)
    tokens, logprobs = Chooser(ALONE, CPU).choose(rows, Logits(logits_RV.clone()), draw_of(rows)).wait("step 1")
    for row, logits_V, token in zip(rows, logits_RV, tokens, strict=True):
        request = row.request
        assert token == alone(row, logits_V)
        by_itself = Chooser(ALONE, CPU).choose([row], Logits(logits_V.unsqueeze(0)), draw_of([row])).wait("step 1")
        assert by_itself == ([token], {name: value for name, value in logprobs.items() if name == request.id})
        assert (request.id in logprobs) == (request.sampling.logprobs is not None)
        if request.id in logprobs:
            reference = logits_V.log_softmax(dim=-1)
            assert logprobs[request.id].chosen == pytest.approx(float(reference[token]), abs=1e-5)
            top = reference.topk(request.sampling.logprobs)
            assert [token for token, _ in logprobs[request.id].top] == top.indices.tolist()


def test_while_requests_come_and_go_each_gets_what_it_gets_alone():
    """The chooser is told no token, as when the host is a step behind: what was said is counted on the device."""
    chance, chooser = random.Random(4), Chooser(ALONE, CPU)
    waiting, running, begun = make_rows(60), [], set()
    for step in range(150):
        chance.shuffle(running)
        while len(running) > 1 and chance.random() < 0.3:
            chooser.forget(running.pop().request.id)
        while waiting and len(running) < 1 + step % 12:
            running.append(waiting.pop())
        logits_RV = logits_of(len(running), step)
        told = [Row(row.request, [] if row.request.id in begun else row.tokens) for row in running]
        found, _ = chooser.choose(told, Logits(logits_RV), draw_of(running)).wait("a step")
        assert found == [alone(*pair) for pair in zip(running, logits_RV, strict=True)]
        for row, token in zip(running, found, strict=True):
            row.tokens.append(token)
            begun.add(row.request.id)
    assert not waiting


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=lambda number: str(KINDS[number]))
def test_calls_do_not_grow_with_the_rows(kind):
    def calls_of(count: int) -> int:
        sampling = Sampling(**{"max_tokens": 99, **KINDS[kind]})
        rows = [Row(Request(str(number), (1, 2), sampling), [1, 2]) for number in range(count)]
        chooser, logits, draw = Chooser(ALONE, CPU), Logits(logits_of(count)), draw_of(rows)
        chooser.choose(rows, logits, draw)  # what is new is sent
        with Calls() as calls:
            chooser.choose(rows, logits, draw).wait("step 2")
        return len(calls.names)

    assert calls_of(16) == calls_of(2)


def test_rows_of_padding_change_nothing():
    rows, logits_RV = make_rows(9), logits_of(9)
    padded_RV = torch.cat((logits_RV, torch.full((7, V), math.nan)))
    found = Chooser(ALONE, CPU).choose(rows, Logits(padded_RV), draw_of(rows)).wait("step 1")
    assert found == Chooser(ALONE, CPU).choose(rows, Logits(logits_RV), draw_of(rows)).wait("step 1")


@pytest.mark.parametrize("number", range(len(KINDS)), ids=lambda number: str(KINDS[number]))
def test_logits_that_are_not_numbers_are_an_error_that_names_step_and_request(number):
    rows, logits_RV = make_rows(len(KINDS)), logits_of(len(KINDS))
    logits_RV[number, 11] = math.nan
    chosen = Chooser(ALONE, CPU).choose(rows, Logits(logits_RV), draw_of(rows))
    with pytest.raises(LogitsError, match=rf"step 7, request {number}: .* are NaN"):
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


class Wrong(Only):
    """A mask of another shape."""

    def allowed(self) -> torch.Tensor:
        return torch.ones(V + 1, dtype=torch.bool)


class Unready(Only):
    """Cannot begin."""

    def start(self, prompt: tuple[int, ...]) -> Only:
        raise GptOssDistError("there is no message")


class Deaf(Only):
    """Takes no token."""

    def accept(self, token: int) -> None:
        raise GptOssDistError(f"token {token} is not allowed")


@pytest.mark.parametrize(
    ("constraint", "steps", "message"),
    [
        (Wrong(()), 0, r"its constraint gives torch.bool of shape \(51,\); torch.bool of shape \(50,\) is needed"),
        (Unready(()), 0, "there is no message"),
        (Deaf(((5,), (5,), (5,))), 1, "token 5 is not allowed"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_constraint_that_fails_ends_its_request_and_no_other(constraint, steps, message, caplog):
    rows = [Row(Request("a", (1,), Sampling(9), constraint), [1]), Row(Request("b", (1,), Sampling(9)), [1])]
    chooser, found = Chooser(ALONE, CPU), []
    for step in range(steps + 2):
        tokens, _ = chooser.choose(rows, Logits(logits_of(2, step)), draw_of(rows)).wait("a step")
        assert tokens[1] == alone(rows[1], logits_of(2, step)[1])
        found.append(tokens[0])
        if tokens[0] is not None:
            chooser.accept(rows[0].request, tokens[0])
    assert found == [5] * steps + [None, None]
    assert re.search(f"request a ends, its constraint failed: {message}", caplog.text)
    assert len(caplog.records) == 1, "said once"


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


def test_what_was_said_is_forgotten_with_its_request():
    row = [Row(Request("a", (4,), Sampling(9, temperature=0.0, frequency_penalty=2.0)), [4])]
    chooser, logits = Chooser(ALONE, CPU), torch.zeros(1, V)
    logits[0, 3] = 1.0
    found = []
    for step in range(4):
        if step == 2:
            chooser.forget("a")
        found += chooser.choose(row, Logits(logits), draw_of(row)).wait("a step")[0]
    assert found == [3, 0, 3, 0]
