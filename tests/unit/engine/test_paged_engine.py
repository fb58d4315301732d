"""The paged engine on one rank with the toy: the same tokens as the model's own forward, whatever else is going on."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from gptoss_dist.config import compose_run
from gptoss_dist.engine.paged_engine import PagedEngine
from gptoss_dist.engine.request import Event, Finish, Request, Sampling
from gptoss_dist.engine.size import CacheSize
from gptoss_dist.engine.transformers_engine import TransformersEngine
from gptoss_dist.errors import ConfigError, DoesNotFitError
from gptoss_dist.model.tiny_conversations import CONVERSATIONS
from gptoss_dist.schema.engine import EngineConf
from gptoss_dist.session import Session, open_session

STOP = (200002, 200012)
GREEDY = Sampling(max_tokens=80, temperature=0, stop_tokens=STOP)


@pytest.fixture(scope="module")
def session() -> Session:
    return open_session(compose_run(["model=tiny", "plan=single", "cluster.log_level=error"]), None)


def make_engine(session: Session, full: int = 256, sliding: int = 256, lag: int = 1, **conf: int) -> PagedEngine:
    settings = EngineConf(name="test", **{"page_size": 8, "step_tokens": 64, "max_running": 8, **conf})
    return PagedEngine(session.loaded, session.group, session.ranks, settings, CacheSize(full, sliding), 0, lag=lag)


def collect(events: list[Event], outputs: dict[str, list[int]]) -> None:
    for event in events:
        outputs.setdefault(event.request_id, []).extend(event.tokens)


def answers(engine: TransformersEngine | PagedEngine, requests: list[Request]) -> dict[str, list[int]]:
    outputs: dict[str, list[int]] = {}
    collect(list(engine.stream(requests)), outputs)
    return outputs


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return [Request(one.name, tuple(one.example()[0]), GREEDY) for one in CONVERSATIONS]


@pytest.fixture(scope="module")
def wanted(requests) -> dict[str, list[int]]:
    return {one.name: list(one.example()[1]) for one in CONVERSATIONS}


@pytest.mark.parametrize(
    "conf",
    [{}, {"page_size": 1}, {"page_size": 64}, {"step_tokens": 8}],
    ids=str,
)
def test_every_conversation_is_answered_as_it_was_trained(session, requests, wanted, conf):
    engine = make_engine(session, **({"full": 2048, "sliding": 2048} if conf.get("page_size") == 1 else {}) | conf)
    assert answers(engine, requests) == wanted
    engine.scheduler.check()


def test_a_small_cache_preempts_and_changes_nothing(session, requests, wanted):
    engine = make_engine(session, full=40, sliding=40)
    assert answers(engine, requests) == wanted
    assert engine.scheduler.preemptions > 0


def test_sampled_tokens_are_those_of_the_models_own_forward(session, requests):
    sampled = [replace(one, sampling=replace(GREEDY, temperature=1.0, seed=7, top_p=0.9)) for one in requests[:4]]
    reference = TransformersEngine(session.loaded, session.group, session.ranks, 0)
    assert answers(make_engine(session), sampled) == answers(reference, sampled)


def test_a_request_does_not_depend_on_its_neighbours(session, requests):
    sampled = [replace(one, sampling=replace(GREEDY, temperature=1.0, seed=3)) for one in requests[:3]]
    together = answers(make_engine(session), sampled)
    for one in sampled:
        assert answers(make_engine(session), [one]) == {one.id: together[one.id]}


def test_many_requests_with_cancellations_in_a_cache_too_small_for_them(session, requests, wanted):
    engine = make_engine(session, full=60, sliding=50, step_tokens=48)
    chance = random.Random(5)
    pending = [replace(chance.choice(requests), id=f"{number}") for number in range(50)]
    names = {one.id: next(name.id for name in requests if name.prompt == one.prompt) for one in pending}
    cancelled: set[str] = set()
    outputs: dict[str, list[int]] = {}
    finishes: dict[str, Finish] = {}
    while pending or engine.has_work:
        for _ in range(min(len(pending), chance.choice((0, 0, 1, 3)))):
            engine.submit(pending.pop())
        if outputs and chance.random() < 0.1:
            victim = chance.choice(sorted(outputs))
            cancelled.add(victim)
            engine.cancel(victim)
        events = engine.step()
        collect(events, outputs)
        finishes |= {event.request_id: event.finish for event in events if event.finish}
        engine.scheduler.check()
    assert set(finishes) == set(names)
    assert engine.scheduler.preemptions > 0
    for name, output in outputs.items():
        whole = wanted[names[name]]
        assert output == (whole if finishes[name] is Finish.stop else whole[: len(output)])
        assert finishes[name] in ((Finish.stop, Finish.cancelled) if name in cancelled else (Finish.stop,))


def test_logprobs_are_those_of_the_models_own_forward(session, requests):
    request = replace(requests[0], sampling=replace(GREEDY, max_tokens=5, logprobs=3))
    events = list(make_engine(session).stream([request]))
    tokens = [event.tokens[0] for event in events]
    whole = torch.tensor([[*request.prompt, *tokens[:-1]]])
    with torch.no_grad():
        logits = session.loaded.model(input_ids=whole, logits_to_keep=len(tokens)).logits[0]
    reference = logits.log_softmax(dim=-1)
    for event, row in zip(events, reference, strict=True):
        (found,) = event.logprobs
        assert found.chosen == pytest.approx(row[event.tokens[0]].item(), abs=1e-4)
        assert [token for token, _ in found.top] == row.topk(3).indices.tolist()


def test_a_request_that_can_never_fit_is_refused_alone(session, requests, wanted):
    engine = make_engine(session, full=40)
    with pytest.raises(DoesNotFitError, match=r"need \d+ pages of 8 tokens .* and the cache has 40 and "):
        engine.submit(replace(requests[0], sampling=replace(GREEDY, max_tokens=400)))
    with pytest.raises(DoesNotFitError, match=r"context is 4096"):
        engine.submit(replace(requests[0], sampling=replace(GREEDY, max_tokens=4096)))
    assert answers(engine, requests[1:2]) == {requests[1].id: wanted[requests[1].id]}


def test_an_id_under_way_is_refused(session, requests):
    engine = make_engine(session)
    engine.submit(requests[0])
    with pytest.raises(ConfigError, match="under way"):
        engine.submit(requests[0])
    engine.step()
    with pytest.raises(ConfigError, match="under way"):
        engine.submit(requests[0])


def test_a_repeated_prompt_is_not_computed_again(session, requests, wanted):
    engine = make_engine(session, lag=0)
    answers(engine, requests[:1])
    events = []
    engine.submit(requests[0])
    events += engine.step()
    assert events, "a prompt of several steps of 64 tokens samples in its first step when its pages are reused"
    assert [*events[0].tokens] == wanted[requests[0].id][:1]
    length, page = len(requests[0].prompt), 8
    assert events[0].cached == (length - 1) // page * page
    events = engine.step()
    assert [event.cached for event in events] == [0], "said once"


def test_cancelling_what_is_not_under_way_does_not_hit_a_later_request(session, requests, wanted):
    engine = make_engine(session)
    engine.cancel(requests[0].id)
    assert answers(engine, requests[:1]) == {requests[0].id: wanted[requests[0].id]}


def test_a_token_outside_the_vocabulary_is_refused_alone(session, requests, wanted):
    engine = make_engine(session)
    with pytest.raises(ConfigError, match="token 201088 is outside the model's vocabulary of 201088"):
        engine.submit(replace(requests[0], prompt=(1, 201088)))
    assert answers(engine, requests[1:2]) == {requests[1].id: wanted[requests[1].id]}
