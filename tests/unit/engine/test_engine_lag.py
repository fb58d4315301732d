"""The host a step behind: the same tokens as without, in as few steps, and errors and constraints where they belong."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace

import pytest
import torch
from reading_runner import VOCABULARY, Answers, ReadingRunner, reading_engine

from gptoss_dist.engine.batch import Batch
from gptoss_dist.engine.request import Event, Finish, Request, Sampling
from gptoss_dist.engine.size import CacheSize
from gptoss_dist.engine.stats import PoolStats
from gptoss_dist.errors import EngineError, GptOssDistError, LogitsError

ANSWERS = Answers(window=6, seed=1)
AMPLE, SMALL = CacheSize(400, 400), CacheSize(24, 20)


@dataclass
class Even:
    """Only even tokens, and after `count` of them none."""

    count: int
    accepted: list[int] = field(default_factory=list)

    def start(self, prompt: tuple[int, ...]) -> Even:
        return Even(self.count)

    def allowed(self) -> torch.Tensor:
        return (torch.arange(VOCABULARY) % 2 == 0) & (len(self.accepted) < self.count)

    def accept(self, token: int) -> None:
        assert token % 2 == 0
        self.accepted.append(token)


def collect(events: list[Event]) -> dict[str, tuple[list[int], Finish | None, int]]:
    """Tokens, finish, and how many log probabilities, by request."""
    found: dict[str, tuple[list[int], Finish | None, int]] = {}
    for event in events:
        tokens, finish, count = found.get(event.request_id, ([], None, 0))
        assert finish is None
        found[event.request_id] = [*tokens, *event.tokens], event.finish, count + len(event.logprobs)
    return found


def mixed_requests(count: int) -> list[Request]:
    chance = random.Random(5)
    kinds: list[dict[str, object]] = [
        {},
        {"temperature": 0.0},
        {"temperature": 0.0, "logprobs": 1},
        {"top_p": 0.7},
        {"presence_penalty": 2.0},
        {"repetition_penalty": 1.4, "temperature": 0.0},
    ]
    requests = []
    for number in range(count):
        prompt = tuple(chance.randrange(VOCABULARY) for _ in range(chance.randrange(1, 20)))
        sampling = Sampling(chance.choice((1, 5, 25)), seed=number, stop_tokens=(number % 9,), **kinds[number % 6])
        constraint = Even(chance.choice((3, 99))) if number % 7 == 0 else None
        requests.append(Request(str(number), prompt, sampling, constraint))
    return requests


@pytest.mark.parametrize("size", [AMPLE, SMALL], ids=["ample", "small"])
def test_lag_changes_no_output(size):
    requests = mixed_requests(120)
    late = reading_engine(ANSWERS, size, lag=1)
    at_once = reading_engine(ANSWERS, size, lag=0)
    found = collect(list(late.stream(requests)))
    assert found == collect(list(at_once.stream(requests)))
    assert set(found) == {one.id for one in requests}
    if size is SMALL:
        assert late.scheduler.preemptions > 5
    finishes = {finish for _, finish, _ in found.values()}
    assert finishes == {Finish.stop, Finish.length, Finish.blocked}
    for one in requests:
        tokens, _, logprobs = found[one.id]
        assert logprobs == (0 if one.sampling.logprobs is None else len(tokens))


def test_a_neighbour_that_is_slow_to_choose_changes_nothing():
    quick = [one for one in mixed_requests(60) if one.quick]
    careful = [one for one in mixed_requests(60) if not one.quick]
    together = collect(list(reading_engine(ANSWERS, AMPLE).stream([*quick, *careful])))
    alone = collect(list(reading_engine(ANSWERS, AMPLE).stream(quick)))
    assert {name: together[name] for name in alone} == alone


class Watched(ReadingRunner):
    """Remembers what the host knew when each batch was launched."""

    def __init__(self, size: CacheSize) -> None:
        super().__init__(ANSWERS, size, 4)
        self.pending: list[int] = []

    def run(self, batch: Batch) -> torch.Tensor:
        self.pending.append(sum(chunk.sequence.pending for chunk in batch.chunks))
        return super().run(batch)


def launched_with(request: Request) -> list[int]:
    runner = Watched(AMPLE)
    list(reading_engine(ANSWERS, AMPLE, runner=runner).stream([request]))
    return runner.pending


def test_the_next_step_is_launched_before_the_last_is_read_unless_there_is_a_constraint():
    plain = Request("a", (1, 2), Sampling(5, temperature=0))
    assert launched_with(plain) == [0, 1, 1, 1, 1]
    assert launched_with(replace(plain, sampling=Sampling(5, logprobs=1, top_p=0.5))) == [0, 1, 1, 1, 1]
    assert launched_with(replace(plain, sampling=Sampling(5, presence_penalty=1))) == [0, 1, 1, 1, 1]
    assert launched_with(replace(plain, constraint=Even(9))) == [0] * 5


@pytest.mark.parametrize("lag", [0, 1])
def test_when_nothing_is_left_nothing_is_under_way(lag):
    engine = reading_engine(ANSWERS, AMPLE, lag=lag)
    [tokens] = [one for one, _, _ in collect(list(engine.stream([Request("a", (1,), Sampling(9))]))).values()]
    stop = Request("a", (1,), Sampling(9, stop_tokens=(tokens[4],)))
    events = list(engine.stream([stop]))
    assert collect(events)["a"][0] == tokens[: tokens.index(tokens[4]) + 1]
    assert not engine.has_work
    assert not engine.scheduler.has_work
    engine.scheduler.check()
    assert engine.step() == []
    assert collect(list(engine.stream([stop]))) == collect(events)


def test_a_constraint_masks_and_one_that_allows_nothing_ends_its_request_alone():
    constrained = Request("even", (1, 2, 3), Sampling(30, temperature=1.0), Even(4))
    plain = Request("plain", (1, 2, 3), Sampling(12))
    found = collect(list(reading_engine(ANSWERS, AMPLE).stream([constrained, plain])))
    tokens, finish, _ = found["even"]
    assert finish is Finish.blocked
    assert len(tokens) == 4
    assert all(token % 2 == 0 for token in tokens)
    assert found["plain"] == collect(list(reading_engine(ANSWERS, AMPLE).stream([plain])))["plain"]


def test_a_constraint_goes_on_after_its_request_gave_way():
    requests = [Request(str(n), (n,), Sampling(40, seed=n), Even(99)) for n in range(6)]
    crowded = reading_engine(ANSWERS, SMALL)
    found = collect(list(crowded.stream(requests)))
    assert crowded.scheduler.preemptions > 0
    assert found == collect(list(reading_engine(ANSWERS, AMPLE).stream(requests)))


class Broken(ReadingRunner):
    """Gives what are not numbers for the first row of its fourth batch."""

    def run(self, batch: Batch) -> torch.Tensor:
        logits = super().run(batch).clone()
        if self.batches == 4:
            logits[0, 5] = math.nan
        return logits


@pytest.mark.parametrize("lag", [0, 1])
def test_logits_that_are_not_numbers_are_an_error_and_never_a_token(lag):
    engine = reading_engine(ANSWERS, AMPLE, lag=lag, runner=Broken(ANSWERS, AMPLE, 4))
    events: list[Event] = []
    requests = [Request("a", (1, 2), Sampling(9)), Request("b", (3,), Sampling(9))]
    with pytest.raises(GptOssDistError, match="step 4, request a: the model's logits for the next token are NaN"):
        events.extend(engine.stream(requests))
    assert [len(tokens) for tokens, _, _ in collect(events).values()] == [3, 3]


class Interrupted(ReadingRunner):
    """Is left in the middle of its second batch."""

    def run(self, batch: Batch) -> torch.Tensor:
        logits = super().run(batch)
        if self.batches == 2:
            raise KeyboardInterrupt
        return logits


@pytest.mark.timeout(60)  # a hang is what is looked for
@pytest.mark.parametrize(
    ("runner", "said"),
    [
        (Broken(ANSWERS, AMPLE, 4), "did not come to its end .LogitsError: step 4, request a"),
        (Interrupted(ANSWERS, AMPLE, 4), "did not come to its end .KeyboardInterrupt"),
    ],
)
def test_an_engine_whose_step_failed_says_so_and_does_not_hang(runner: ReadingRunner, said: str):
    engine = reading_engine(ANSWERS, AMPLE, runner=runner)
    engine.submit(Request("a", (1, 2), Sampling(9)))
    with pytest.raises((LogitsError, KeyboardInterrupt)):
        list(engine.drain())
    engine.cancel("a")
    engine.submit(Request("b", (3,), Sampling(9)))
    for _ in range(2):
        with pytest.raises(EngineError, match=said):
            engine.step()


def test_cancelling_while_a_token_is_under_way():
    engine = reading_engine(ANSWERS, AMPLE)
    engine.submit(Request("a", (1, 2), Sampling(9)))
    engine.submit(Request("b", (1, 2), Sampling(9)))
    assert engine.step() == []
    engine.cancel("a")
    first = engine.step()
    assert [(event.request_id, event.finish, len(event.tokens)) for event in first] == [
        ("a", Finish.cancelled, 0),
        ("b", None, 1),
    ]
    engine.submit(Request("a", (9,), Sampling(2)))
    rest = collect(list(engine.stream([])))
    assert (len(rest["a"][0]), len(rest["b"][0])) == (2, 8)


def test_stats_count_requests_pages_and_tokens():
    engine = reading_engine(ANSWERS, CacheSize(40, 30), max_running=2)
    assert engine.stats().running == engine.stats().waiting == 0
    for name in "abc":
        engine.submit(Request(name, (1, 2, 3, 4, 5), Sampling(3)))
    engine.step()
    engine.step()
    [replica] = engine.stats().replicas
    assert (replica.running, replica.waiting, replica.preemptions, replica.generated) == (2, 1, 0, 2)
    assert replica.full == PoolStats(total=40, free=36, held=4, cached=0)
    assert replica.sliding.total == 30
    list(engine.stream([]))
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.generated, stats.preemptions) == (0, 0, 9, 0)
    assert stats.replicas[0].full.held == 0
    assert stats.replicas[0].full.cached > 0
    assert stats.steps > 6


def test_releasing_is_one_step():
    engine = reading_engine(ANSWERS, AMPLE)
    engine.submit(Request("a", (1, 2), Sampling(3)))
    engine.release()
    engine.step()
    assert engine.stats().steps == 1
    assert engine.has_work, "what is left is rank 0's to end"
    assert len(collect(list(engine.stream([])))["a"][0]) == 3
