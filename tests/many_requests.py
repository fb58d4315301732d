"""Many random requests with random cancellations through a cache too small for those that run at once.

Every finished output is compared with what its request chooses alone, and of a cancelled one what there is of it.
"""

from __future__ import annotations

import random
from collections import Counter

import one_row
import torch
from reading_runner import VOCABULARY, Answers, reading_engine

from gptoss_dist.engine.request import Event, Finish, Request, Sampling
from gptoss_dist.engine.size import CacheSize
from gptoss_dist.kernels.sample_reference import best_of_shard

WINDOW = 10


def make_requests(chance: random.Random, count: int) -> list[Request]:
    """Many begin alike; the first thousand also have cuts, penalties and log probabilities among them."""

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(chance.randrange(VOCABULARY) for _ in range(length))

    beginnings = [tokens(chance.randrange(4, 30)) for _ in range(20)]
    careful = ({"top_p": 0.8}, {"top_k": 5}, {"presence_penalty": 1.5}, {"repetition_penalty": 1.3}, {"logprobs": 2})
    requests = []
    for number in range(count):
        prompt = chance.choice(beginnings)[: chance.randrange(1, 30)] + tokens(chance.randrange(0, 6))
        keys: dict[str, object] = {
            "temperature": 1.0 if number < 2000 and chance.random() < 0.4 else 0.0,
            "seed": number,
        }
        if number < 1000 and chance.random() < 0.2:
            keys |= {"temperature": 1.0, **chance.choice(careful)}
        stop = tokens(chance.randrange(0, 3))
        sampling = Sampling(chance.choice((1, 2, 6, 24)), stop_tokens=stop, **keys)
        requests.append(Request(str(number), prompt or (1,), sampling))
    return requests


def verify(request: Request, output: list[int], finish: Finish, answers: Answers) -> tuple[torch.Tensor, list[int]]:
    """Whether it ended where it had to; the rows of the logits that its tokens were to be chosen by, and the tokens."""
    sampling = request.sampling
    assert len(output) <= sampling.max_tokens
    assert not any(token in sampling.stop_tokens for token in output[:-1])
    if finish is not Finish.cancelled:
        stopped = output[-1] in sampling.stop_tokens
        assert finish is (Finish.stop if stopped else Finish.length)
        assert stopped or len(output) == sampling.max_tokens
    whole = [*request.prompt, *output[:-1]]
    return answers.logits_rows(whole, len(request.prompt) - 1)[: len(output)], output


def verify_tokens(checked: list[tuple[Request, torch.Tensor, list[int]]], answers: Answers) -> None:
    """Every token is the one that its request alone, without any cache, chooses after the tokens before it.

    Where each of them is, so is the whole output. Requests of the plain kind are verified all at once.
    """
    plain = [one for one in checked if one[0].quick]
    rows = torch.cat([rows for _, rows, _ in plain])
    tokens = torch.tensor([token for _, _, output in plain for token in output])

    def each(value: str) -> torch.Tensor:
        return torch.tensor([getattr(one.sampling, value) for one, _, output in plain for _ in output])

    places = torch.tensor([len(one.prompt) + place for one, _, output in plain for place in range(len(output))])
    wanted = best_of_shard(answers.logits[rows], 0, each("temperature"), each("seed"), places)[1]
    assert torch.equal(tokens, wanted)
    careful = [one for one in checked if not one[0].quick]
    assert len([one for one in careful if one[0].sampling.penalised]) > 20
    for request, rows, output in careful:
        for place, (row, token) in enumerate(zip(rows.tolist(), output, strict=True)):
            assert token == one_row.choose(answers.logits[row], request.sampling, request.prompt, output[:place])


def check_many(seed: int, count: int, lag: int = 1) -> Counter[Finish]:
    """AssertionError if an output, a page or a table is wrong; how the requests ended."""
    chance, answers = random.Random(seed), Answers(WINDOW, seed)
    engine = reading_engine(answers, CacheSize(44, 44), lag, max_running=32, step_tokens=128)
    requests = make_requests(chance, count)
    pending = requests[::-1]
    outputs: dict[str, list[int]] = {one.id: [] for one in requests}
    finishes: dict[str, Finish] = {}
    under_way: list[str] = []
    steps = 0

    def take_in(events: list[Event]) -> None:
        for event in events:
            assert event.request_id not in finishes
            outputs[event.request_id] += event.tokens
            if event.finish is not None:
                finishes[event.request_id] = event.finish

    while pending or engine.has_work:
        while pending and len(engine.scheduler.waiting) < 8 and chance.random() < 0.95:
            under_way.append(pending[-1].id)
            engine.submit(pending.pop())
        if chance.random() < 0.2:
            under_way = [name for name in under_way if name not in finishes]
            if under_way:
                engine.cancel(chance.choice(under_way))
        take_in(engine.step())
        steps += 1
        if steps % 20 == 0:
            engine.scheduler.check()
    engine.scheduler.check()
    full, sliding = engine.scheduler.pools
    assert (full.held, sliding.held) == (0, 0)
    assert set(finishes) == set(outputs)
    counts = Counter(finishes.values())
    assert min(counts[one] for one in (Finish.stop, Finish.length, Finish.cancelled)) > count / 100, counts
    assert engine.scheduler.preemptions > count / 400
    assert engine.stats().generated == sum(map(len, outputs.values()))
    checked = [(one, *verify(one, outputs[one.id], finishes[one.id], answers)) for one in requests if outputs[one.id]]
    verify_tokens(checked, answers)
    return counts
