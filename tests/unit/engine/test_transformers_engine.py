"""The engine's contract on one rank; tests/multi runs it on several."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from conftest import SMALL

from gptoss_dist.config import compose_run
from gptoss_dist.engine import transformers_engine
from gptoss_dist.engine.engine import Engine
from gptoss_dist.engine.request import Event, Finish, Request, Sampling
from gptoss_dist.engine.transformers_engine import TransformersEngine
from gptoss_dist.errors import ConfigError, DoesNotFitError
from gptoss_dist.session import Session, open_session

PROMPTS = {"a": tuple(range(5)), "b": tuple(range(100, 140)), "c": (511,), "d": tuple(range(200, 217))}


@pytest.fixture(scope="module")
def session(make_checkpoint) -> Session:
    folder: Path = make_checkpoint()
    words = ["model=tiny", f"model.path={folder}", "model.dtype=float32", "plan=single", "cluster.device=cpu"]
    return open_session(compose_run(words), None)


@pytest.fixture
def engine(session: Session) -> TransformersEngine:
    return TransformersEngine(session.loaded, session.group, session.ranks)


def request(name: str, max_tokens: int = 8, **sampling: object) -> Request:
    return Request(name, PROMPTS[name], Sampling(max_tokens, **{"temperature": 0, **sampling}))


def finish(engine: Engine, requests: Iterable[Request] = ()) -> dict[str, list[Event]]:
    """The events of each request, once all are finished."""
    events: dict[str, list[Event]] = {}
    for event in engine.stream(requests):
        events.setdefault(event.request_id, []).append(event)
    return events


def tokens(events: list[Event]) -> list[int]:
    return [token for event in events for token in event.tokens]


def alone(session: Session, one: Request) -> list[int]:
    engine = TransformersEngine(session.loaded, session.group, session.ranks)
    return tokens(finish(engine, [one])[one.id])


def test_greedy_tokens_are_the_likeliest_ones_of_a_forward_without_a_cache(session: Session):
    found = alone(session, request("b", 12))
    whole = [*PROMPTS["b"], *found]
    with torch.no_grad():
        logits = session.loaded.model(input_ids=torch.tensor([whole]), use_cache=False).logits[0]
    start = len(PROMPTS["b"]) - 1
    assert found == logits.argmax(dim=-1).tolist()[start:-1]
    assert len(set(found)) > 3


def room_for(session: Session, *requests: Request) -> int:
    """Bytes of their caches."""
    return sum(session.loaded.planned.cache(len(one.prompt) + one.sampling.max_tokens) for one in requests)


@pytest.mark.parametrize("bound", ["places", "room"])
def test_only_so_many_requests_have_a_cache_at_once(session: Session, bound: str):
    requests = [request(name, 3) for name in PROMPTS]
    limits = {"max_running": 2} if bound == "places" else {"room": room_for(session, *requests[:2])}
    engine = TransformersEngine(session.loaded, session.group, session.ranks, **limits)
    for one in requests:
        engine.submit(one)
    events, most = [], 0
    while engine.has_work:
        events += engine.step()
        most = max(most, engine.stats().running)
    assert most == 2
    assert engine.stats().running == engine.stats().waiting == 0
    for one in requests:
        assert tokens([event for event in events if event.request_id == one.id]) == alone(session, one)


def test_what_there_is_no_room_for_is_refused_alone(session: Session):
    room = room_for(session, request("b", 8))
    engine = TransformersEngine(session.loaded, session.group, session.ranks, room=room)
    assert engine.context == 48
    assert [engine.at_once(request("b", count)) for count in (9, 8)] == [0, 1]
    with pytest.raises(
        DoesNotFitError, match=r"^request b: 40 prompt tokens and up to 9 new ones take 0\.0 GB of cache"
    ):
        engine.submit(request("b", 9))
    assert tokens(finish(engine, [request("b", 8)])["b"]) == alone(session, request("b", 8))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_interleaved_requests_get_what_each_gets_alone(session: Session, engine: TransformersEngine, temperature):
    requests = [request(name, 6 + place, temperature=temperature, seed=place) for place, name in enumerate(PROMPTS)]
    for one in requests[:2]:
        engine.submit(one)
    events = [*engine.step(), *engine.step(), *engine.step()]
    for one in requests[2:]:
        engine.submit(one)
    while engine.has_work:
        events += engine.step()
    for one in requests:
        assert [token for event in events if event.request_id == one.id for token in event.tokens] == alone(
            session, one
        )


def test_a_seed_decides_and_neighbours_do_not(session: Session):
    one = alone(session, request("a", temperature=1.0, seed=1))
    assert alone(session, request("a", temperature=1.0, seed=1)) == one
    assert alone(session, request("a", temperature=1.0, seed=2)) != one
    assert alone(session, request("a")) != one


@pytest.mark.parametrize("chunk", [1, 16, 17])
def test_a_prompt_in_pieces_gives_what_the_whole_prompt_gives(session: Session, monkeypatch, chunk: int):
    whole = alone(session, request("b", 12))  # 40 tokens over a window of 16
    monkeypatch.setattr(transformers_engine, "_PREFILL", chunk)
    assert alone(session, request("b", 12)) == whole


def test_a_long_prompt_goes_through_eager_attention_in_pieces(session: Session, engine, monkeypatch):
    whole = alone(session, request("b", 3))
    monkeypatch.setattr(transformers_engine, "_SCORE_BYTES", 15 * 40 * SMALL.heads * 4)
    sizes: list[int] = []
    watched = session.loaded.model.register_forward_pre_hook(
        lambda _model, _given, named: sizes.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    with contextlib.ExitStack() as stack:
        stack.callback(watched.remove)
        assert tokens(finish(engine, [request("b", 3)])["b"]) == whole
    assert sizes == [15, 15, 10, 1, 1]


@pytest.mark.parametrize("chunk", [16, 17])
def test_a_prompt_in_pieces_gives_the_same_logits(session: Session, engine, monkeypatch, chunk: int):
    one = request("b")
    with torch.no_grad():
        whole = engine._forward(engine._begin(one), one.prompt)
        monkeypatch.setattr(transformers_engine, "_PREFILL", chunk)
        pieces = engine._forward(engine._begin(one), one.prompt)
    assert (whole - pieces).abs().max() < 1e-4


def test_penalties_biases_and_log_probabilities_are_those_of_the_paged_engine_too(session: Session, engine):
    free = alone(session, request("a", 8))
    penalized = alone(session, request("a", 8, repetition_penalty=10.0, frequency_penalty=2.0))
    assert len(set(penalized)) == 8, "nothing is said twice"
    assert len(set(free)) < 8 or free != penalized
    assert set(alone(session, request("a", 8, logit_bias=((77, 1000.0),)))) == {77}
    events = finish(engine, [request("a", 4, logprobs=2)])["a"]
    assert tokens(events) == free[:4]
    for event in events:
        [found] = event.logprobs
        assert found.top[0] == (event.tokens[0], pytest.approx(found.chosen))
        assert len(found.top) == 2


def test_a_constraint_masks_and_ends(session: Session, engine: TransformersEngine):
    class Twice:
        def __init__(self) -> None:
            self.count = 0

        def start(self, prompt: tuple[int, ...]) -> Twice:
            return self

        def allowed(self) -> torch.Tensor:
            return (torch.arange(512) == 9) & (self.count < 2)

        def accept(self, token: int) -> None:
            self.count += 1

    constrained = Request("a", PROMPTS["a"], Sampling(9, temperature=0), constraint=Twice())
    events = finish(engine, [constrained, request("b", 3)])
    assert events["a"][-1] == Event("a", (), Finish.blocked)
    assert tokens(events["a"]) == [9, 9]
    assert tokens(events["b"]) == alone(session, request("b", 3))


def test_stats_and_release(session: Session, engine: TransformersEngine):
    engine.submit(request("a", 3))
    engine.submit(request("b", 3))
    engine.release()
    engine.step()
    [replica] = engine.stats().replicas
    assert (replica.running, replica.waiting, replica.generated) == (1, 1, 1)
    finish(engine)
    assert (engine.stats().running, engine.stats().generated) == (0, 6)


def test_events_come_in_order_and_only_the_last_says_why(engine: TransformersEngine):
    for events in finish(engine, [request(name, 5) for name in PROMPTS]).values():
        assert [event.finish for event in events] == [None] * 4 + [Finish.length]
        assert all(len(event.tokens) == 1 for event in events)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_max_tokens(engine: TransformersEngine, count: int):
    events = finish(engine, [request("a", count)])["a"]
    assert len(tokens(events)) == count
    assert events[-1].finish is Finish.length
    assert not engine.has_work


def test_a_stop_token_ends_the_request_and_is_its_last_token(session: Session, engine: TransformersEngine):
    free = alone(session, request("a", 8))
    stop = free[3]
    place = free.index(stop)
    events = finish(engine, [request("a", 8, stop_tokens=(511, stop)), request("b", 8)])
    assert tokens(events["a"]) == free[: place + 1]
    assert events["a"][-1].finish is Finish.stop
    assert events["b"][-1].finish is Finish.length


def test_a_stop_token_that_is_also_the_last_one_allowed_counts_as_a_stop(session: Session, engine):
    free = alone(session, request("a", 1))
    assert finish(engine, [request("a", 1, stop_tokens=tuple(free))])["a"][-1].finish is Finish.stop


def test_nothing_happens_before_a_step(engine: TransformersEngine):
    assert engine.step() == []
    engine.submit(request("a"))
    assert engine.has_work
    assert engine.stats().running == engine.stats().waiting == 0
    engine.step()
    assert engine.stats().running == 1


def test_cancelling_a_running_request(session: Session, engine: TransformersEngine):
    engine.submit(request("a"))
    engine.submit(request("b"))
    engine.step()
    engine.step()
    engine.cancel("a")
    events = engine.step()
    assert Event("a", (), Finish.cancelled) in events
    rest = finish(engine)
    assert set(rest) == {"b"}
    assert [event for event in events if event.request_id == "a"] == [Event("a", (), Finish.cancelled)]


def test_cancelling_a_waiting_request(session: Session, engine: TransformersEngine):
    engine.submit(request("a", 3))
    engine.submit(request("b", 3))
    engine.step()
    engine.cancel("b")
    events = finish(engine)
    assert events["b"] == [Event("b", (), Finish.cancelled)]
    assert events["a"][-1].finish is Finish.length


def test_cancelling_a_request_that_has_not_reached_the_ranks(engine: TransformersEngine):
    engine.submit(request("a"))
    engine.cancel("a")
    assert engine.step() == [Event("a", (), Finish.cancelled)]
    assert not engine.has_work


def test_cancelling_twice_is_cancelling_once(engine: TransformersEngine):
    engine.submit(request("a"))
    engine.step()
    engine.cancel("a")
    engine.cancel("a")
    assert engine.step() == [Event("a", (), Finish.cancelled)]
    assert engine.step() == []


def test_cancelling_what_is_unknown_or_finished_does_nothing_to_a_later_request_of_that_id(engine):
    engine.cancel("a")
    assert len(tokens(finish(engine, [request("a", 3)])["a"])) == 3
    engine.cancel("a")
    assert len(tokens(finish(engine, [request("a", 3)])["a"])) == 3


def test_an_id_is_free_again_once_its_request_is_finished_and_not_before(engine: TransformersEngine):
    engine.submit(request("a", 2))
    with pytest.raises(ConfigError, match="request a: a request of this id is under way"):
        engine.submit(request("a", 2))
    engine.step()
    with pytest.raises(ConfigError, match="under way"):
        engine.submit(request("a", 2))
    finish(engine)
    assert len(tokens(finish(engine, [request("a", 2)])["a"])) == 2


def test_what_does_not_fit_is_refused_alone_with_its_numbers(session: Session, engine: TransformersEngine):
    assert engine.context == SMALL.max_position == 256
    engine.submit(request("a", 4))
    engine.step()
    with pytest.raises(DoesNotFitError) as caught:
        engine.submit(Request("long", (1,) * 200, Sampling(57, temperature=0)))
    assert str(caught.value).startswith(
        "request long: 200 prompt tokens and up to 57 new ones are 257, and the model's context is 256."
    )
    assert len(tokens(finish(engine)["a"])) == 3


def test_the_whole_context_can_be_used(engine: TransformersEngine):
    events = finish(engine, [Request("full", (7,) * 250, Sampling(6, temperature=0))])["full"]
    assert len(tokens(events)) == 6


@pytest.mark.parametrize("token", [-1, 512, 10**9])
def test_a_token_outside_the_vocabulary_is_refused_alone(engine: TransformersEngine, token: int):
    engine.submit(request("a", 2))
    with pytest.raises(ConfigError, match=f"request odd: token {token} is outside the model's vocabulary of 512"):
        engine.submit(Request("odd", (1, token), Sampling(2)))
    assert set(finish(engine)) == {"a"}


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(ConfigError, match="request none: the prompt has no tokens"):
        Request("none", (), Sampling(1))


def test_submitting_on_another_rank_does_nothing(session: Session):
    group = type(session.group)(rank=1, local_rank=1, world_size=1, device=session.group.device)
    engine = TransformersEngine(session.loaded, group, session.ranks)
    engine.submit(request("a"))
    engine.submit(request("a"))
    engine.cancel("a")
    assert not engine.has_work


def test_grad_mode_is_as_it_was(engine: TransformersEngine):
    engine.submit(request("a"))
    engine.step()
    assert torch.is_grad_enabled()
