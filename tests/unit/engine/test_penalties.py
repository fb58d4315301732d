from __future__ import annotations

import random

import one_row
import torch

from gptoss_dist.engine.penalties import Said
from gptoss_dist.engine.request import Request, Row, Sampling
from gptoss_dist.engine.staging import Staging

V, CPU = 12, torch.device("cpu")


def make_row(name: str, chance: random.Random, said: int = 0) -> Row:
    sampling = Sampling(
        max_tokens=99,
        presence_penalty=chance.uniform(-2, 2),
        frequency_penalty=chance.uniform(-2, 2),
        repetition_penalty=chance.uniform(0.5, 2),
    )
    prompt = tuple(chance.choices(range(V), k=chance.randrange(1, 5)))
    return Row(Request(name, prompt, sampling), [*prompt, *chance.choices(range(V), k=said)])


def check(said: Said, rows: list[Row], seed: int) -> None:
    """One step: every row's logits are those of the definitions; then a token each."""
    logits_LV = torch.randn(len(rows), V, generator=torch.Generator().manual_seed(seed)) * 5
    found_LV, penalties = logits_LV.clone(), said.penalties(rows, V)
    said.penalise(found_LV, penalties)
    for row, logits_V, found_V in zip(rows, logits_LV, found_LV, strict=True):
        prompt = row.request.prompt
        wanted = one_row.adjusted(logits_V.tolist(), row.request.sampling, prompt, row.tokens[len(prompt) :])
        torch.testing.assert_close(found_V, torch.tensor(wanted))
    tokens = [(seed * 5 + number * 3) % V for number in range(len(rows))]
    said.count(penalties, torch.tensor(tokens))
    for row, token in zip(rows, tokens, strict=True):
        row.tokens.append(token)


def test_penalties_are_those_of_their_definitions_while_requests_come_and_go():
    chance, said = random.Random(0), Said(Staging(CPU), CPU)
    rows: list[Row] = []
    for step in range(60):
        while len(rows) < 1 + step % 7:
            rows.append(make_row(f"{step} {len(rows)}", chance, said=step % 3))
        while len(rows) > 1 + step % 5:
            said.forget(rows.pop(chance.randrange(len(rows))).request.id)
        chance.shuffle(rows)
        check(said, rows, step)


def test_a_request_that_pauses_keeps_what_it_said():
    chance, said = random.Random(1), Said(Staging(CPU), CPU)
    first, second = make_row("a", chance), make_row("b", chance)
    for step, rows in enumerate(([first], [first, second], [second], [second], [second, first])):
        check(said, rows, step)


def test_a_later_request_of_the_same_id_begins_anew():
    chance, said = random.Random(2), Said(Staging(CPU), CPU)
    check(said, [make_row("a", chance)], 0)
    said.forget("a")
    said.forget("unknown")
    check(said, [make_row("a", chance)], 1)


def test_rows_without_penalties_are_left_alone():
    chance, said = random.Random(3), Said(Staging(CPU), CPU)
    plain = Row(Request("plain", (1,), Sampling(9)), [1])
    assert said.penalties([plain, plain], V) is None
    rows = [plain, make_row("a", chance), plain]
    logits_LV = torch.ones(3, V)
    said.penalise(logits_LV, said.penalties(rows, V))
    assert bool((logits_LV[[0, 2]] == 1).all())
    assert not bool((logits_LV[1] == 1).all())


def test_what_is_no_token_is_not_counted():
    said = Said(Staging(CPU), CPU)
    row = Row(Request("a", (1,), Sampling(9, frequency_penalty=1.0)), [1])
    penalties = said.penalties([row], V)
    for token in (-1, -2):
        said.count(penalties, torch.tensor([token]))
    logits_LV = torch.ones(1, V)
    said.penalise(logits_LV, penalties)
    assert bool((logits_LV == 1).all())


def test_before_the_first_token_only_the_prompt_counts():
    sampling = Sampling(max_tokens=1, presence_penalty=1.0, frequency_penalty=1.0, repetition_penalty=2.0)
    said, row = Said(Staging(CPU), CPU), Row(Request("a", (0, 1), sampling), [0, 1])
    logits_LV = torch.tensor([[1.0, -1.0, 2.0]])
    said.penalise(logits_LV, said.penalties([row], 3))
    assert logits_LV.tolist() == [[0.5, -2.0, 2.0]]
