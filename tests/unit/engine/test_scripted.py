from __future__ import annotations

import pytest

from gptoss_dist.engine.request import Finish, Request, Sampling
from gptoss_dist.engine.scripted import Script, ScriptedEngine
from gptoss_dist.errors import ConfigError, DoesNotFitError
from gptoss_dist.schema.engine import EngineConf


def engine_of(script: Script, **conf) -> ScriptedEngine:
    return ScriptedEngine(lambda _: script, EngineConf(**{"name": "scripted", "cache_tokens": 128, **conf}))


def play(engine: ScriptedEngine, *requests: Request) -> dict[str, tuple[list[int], Finish | None]]:
    said: dict[str, tuple[list[int], Finish | None]] = {}
    for event in engine.stream(requests):
        tokens, _ = said.get(event.request_id, ([], None))
        said[event.request_id] = ([*tokens, *event.tokens], event.finish)
    engine.scheduler.check()
    assert engine.stats().replicas[0].full.held == 0
    return said


@pytest.mark.parametrize(
    ("script", "sampling", "said"),
    [
        (Script((1, 2, 3)), Sampling(10), ([1, 2, 3], Finish.stop)),
        (Script((1, 2, 3), finish=Finish.length), Sampling(10), ([1, 2, 3], Finish.length)),
        (Script((1, 2, 3)), Sampling(2), ([1, 2], Finish.length)),
        (Script((1, 2, 3)), Sampling(10, stop_tokens=(2,)), ([1, 2], Finish.stop)),
        (Script((1, 2, 3)), Sampling(3), ([1, 2, 3], Finish.length)),
    ],
)
def test_a_script_is_said_until_something_ends_it(script, sampling, said):
    assert play(engine_of(script), Request("a", (5,) * 20, sampling)) == {"a": said}


def test_many_share_the_cache_and_give_way():
    requests = [Request(str(index), (index + 1,) * 20, Sampling(60)) for index in range(6)]
    said = play(engine_of(Script(tuple(range(50))), page_size=8, max_running=4), *requests)
    assert said == {str(index): (list(range(50)), Finish.stop) for index in range(6)}


def test_a_cancelled_request_ends_wherever_it_is():
    engine = engine_of(Script(tuple(range(50))), max_running=1)
    for name in ("running", "waiting", "queued"):
        if name == "queued":
            engine.step()
        engine.submit(Request(name, (1, 2), Sampling(60)))
    for name in ("running", "waiting", "queued", "unknown"):
        engine.cancel(name)
    assert {event.request_id: event.finish for event in engine.step()} == dict.fromkeys(
        ("running", "waiting", "queued"), Finish.cancelled
    )
    assert not engine.has_work
    assert engine.step() == []
    assert engine.stats().replicas[0].full.held == 0


def test_cancelling_what_has_ended_does_not_end_a_later_request_of_that_id():
    engine = engine_of(Script((1, 2)))
    for _ in range(2):
        assert play(engine, Request("a", (5,), Sampling(9))) == {"a": ([1, 2], Finish.stop)}
        engine.cancel("a")


def test_what_was_found_in_the_cache_is_said_with_the_first_token():
    engine = engine_of(Script((7, 8)))
    cached = [[event.cached for event in engine.stream([Request(name, (1,) * 40, Sampling(5))])] for name in "ab"]
    assert cached == [[0, 0], [32, 0]]


def test_log_probabilities_come_as_asked():
    engine = engine_of(Script((7, 8)))
    events = list(engine.stream([Request("a", (1,), Sampling(5, logprobs=2))]))
    assert [event.logprobs[0].top for event in events] == [((7, -0.25), (8, -2.25)), ((8, -0.25), (9, -2.25))]


def test_what_no_engine_takes_is_refused():
    engine = engine_of(Script((1,)))
    engine.submit(Request("a", (1,), Sampling(5)))
    with pytest.raises(ConfigError, match="under way"):
        engine.submit(Request("a", (1,), Sampling(5)))
    with pytest.raises(DoesNotFitError):
        engine.submit(Request("b", (1,) * 100, Sampling(29)))
    with pytest.raises(ConfigError, match="vocabulary"):
        engine.submit(Request("c", (-1,), Sampling(5)))
