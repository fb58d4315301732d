from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptoss_dist.config import compose_run
from gptoss_dist.engine.engine import Engine, nothing
from gptoss_dist.engine.request import Event, Finish, Request
from gptoss_dist.errors import PromptError
from gptoss_dist.harmony.vocab import load_encoding
from gptoss_dist.jobs.generate import run_generate, sampling_of
from gptoss_dist.plan.degrees import Degrees
from gptoss_dist.schema.generation import GenerationConf
from gptoss_dist.schema.kernels import ExpertKernel
from gptoss_dist.schema.run import Backend
from gptoss_dist.session import Session

ANSWER = (
    "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>Paris, of course.<|return|>"
)
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'


class Script(Engine):
    """An engine of one rank that says what is written, `width` tokens a step, and otherwise keeps every rule."""

    def __init__(self, text: str, width: int = 1) -> None:
        self.script = list(load_encoding().encode(text, allowed_special="all"))
        self.width = width
        self.requests: list[Request] = []
        self.cancelled: list[str] = []
        self.said = 0
        self.steps = self.followed = 0
        self._running = False

    def submit(self, request: Request) -> None:
        self.requests.append(request)
        self._running = True

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def at_once(self, request: Request) -> int:
        return 1

    def follow(self, after_step: Callable[[], None] = nothing) -> None:
        self.followed += 1

    def step(self) -> list[Event]:
        self.steps += 1
        if not self._running:
            return []
        (request,) = self.requests
        if self.cancelled:
            self._running = False
            return [Event(request.id, (), Finish.cancelled)]
        room = request.sampling.max_tokens - self.said
        tokens = tuple(self.script[self.said : self.said + min(self.width, room)])
        self.said += len(tokens)
        finish = None
        if set(tokens) & set(request.sampling.stop_tokens):
            finish = Finish.stop
        elif self.said == request.sampling.max_tokens or self.said == len(self.script):
            finish = Finish.length
        self._running = finish is None
        return [Event(request.id, tokens, finish)]

    @property
    def has_work(self) -> bool:
        return self._running

    @property
    def context(self) -> int:
        return 4096


def session_of(engine: Script, *words: str, rank: int = 0) -> Session:
    run = compose_run(["model=tiny", "plan=single", *words])
    loaded = SimpleNamespace(
        checkpoint=SimpleNamespace(folder=Path("nowhere")),
        degrees=Degrees(1, 1),
        plan=run.plan,
        kernels=SimpleNamespace(attention="eager", experts=ExpertKernel.reference),
        seconds=1.25,
    )
    return Session(run, Backend.transformers, SimpleNamespace(rank=rank), SimpleNamespace(), loaded, engine)


def answer(engine: Script, *words: str, as_json: bool = True, stop_after: int | None = None) -> dict:
    def should_stop() -> bool:
        return stop_after is not None and engine.steps >= stop_after

    session = session_of(engine, "prompt=Capital of France?", "generation.seed=5", *words)
    result = run_generate(session, as_json, should_stop)
    assert result is not None
    return result


def test_the_answer_as_one_object(capsys):
    engine = Script(ANSWER)
    result = answer(engine)
    assert capsys.readouterr().out == ""
    assert (result["final"], result["analysis"], result["tool_calls"]) == ("Paris, of course.", "Easy.", [])
    assert result["finish_reason"] == "stop"
    assert result["seed"] == 5
    assert result["plan"] == {"name": "single", "dp": 1, "tp": 1}
    assert result["kernels"] == {"attention": "eager", "experts": "reference"}
    assert result["usage"] == {
        "prompt_tokens": len(engine.requests[0].prompt),
        "completion_tokens": len(engine.script),
        "total_tokens": len(engine.requests[0].prompt) + len(engine.script),
    }
    assert json.loads(json.dumps(result)) == result
    assert {"final", "analysis", "tool_calls", "finish_reason", "usage", "seed", "plan"} <= set(result)


def test_the_answer_as_it_comes(monkeypatch):
    written: list[str] = []

    class Screen(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    monkeypatch.setattr("sys.stdout", Screen())
    answer(Script(ANSWER), as_json=False)
    assert "".join(written) == "analysis: Easy.\n\nfinal: Paris, of course.\n"
    assert len([text for text in written if text.strip()]) > 3


@pytest.mark.parametrize("width", [1, 2, 7, 1000])
@pytest.mark.parametrize("stream", [True, False])
def test_streamed_or_not_the_text_is_the_same(capsys, width, stream):
    answer(Script(ANSWER, width), f"job.stream={str(stream).lower()}", as_json=False)
    assert capsys.readouterr().out == "analysis: Easy.\n\nfinal: Paris, of course.\n"


def test_analysis_can_be_hidden(capsys):
    result = answer(Script(ANSWER), "job.show_analysis=false", as_json=False)
    assert capsys.readouterr().out == "final: Paris, of course.\n"
    assert result["analysis"] == "Easy."


def test_tool_calls_come_as_json():
    result = answer(Script(CALL))
    (call,) = result["tool_calls"]
    assert (call["name"], json.loads(call["arguments"])) == ("f", {"a": 1})
    assert (result["finish_reason"], result["final"]) == ("tool_calls", None)


@pytest.mark.parametrize("width", [1, 3, 1000])
def test_a_stop_text_cancels_the_request_once_and_is_cut_off(capsys, width):
    engine = Script(ANSWER, width)
    result = answer(engine, "generation.stop=[', of']", as_json=False)
    assert (result["final"], result["finish_reason"]) == ("Paris", "stop")
    assert engine.cancelled == ["generate"]
    assert capsys.readouterr().out == "analysis: Easy.\n\nfinal: Paris\n"
    assert not engine.has_work


def test_what_looked_like_a_stop_text_is_printed_in_the_end(capsys):
    answer(Script(ANSWER), "generation.stop=['course.!']", as_json=False)
    assert capsys.readouterr().out == "analysis: Easy.\n\nfinal: Paris, of course.\n"


def test_the_longest_answer_is_kept_to():
    engine = Script(ANSWER)
    result = answer(engine, "generation.max_new_tokens=12")
    assert (result["finish_reason"], result["usage"]["completion_tokens"]) == ("length", 12)
    assert "Paris, of course.".startswith(result["final"])


def test_being_told_to_stop_ends_the_answer_where_it_is():
    engine = Script(ANSWER)
    result = answer(engine, stop_after=12)
    assert engine.cancelled
    assert set(engine.cancelled) == {"generate"}
    assert (result["finish_reason"], result["usage"]["completion_tokens"]) == ("cancelled", 12)


def test_what_the_engine_is_asked_for():
    engine = Script(ANSWER)
    answer(engine, "generation.temperature=0.5", "generation.top_k=3", "generation.max_new_tokens=50")
    (request,) = engine.requests
    assert load_encoding().decode(request.prompt).endswith("Capital of France?<|end|><|start|>assistant")
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.max_tokens, sampling.seed) == (0.5, 3, 50, 5)
    assert set(sampling.stop_tokens) == {200002, 200012, 199999}


def test_other_ranks_follow_and_say_nothing(capsys):
    engine = Script(ANSWER)
    session = session_of(engine, "prompt=x", rank=1)
    assert run_generate(session, True, lambda: False) is None
    assert run_generate(session, False, lambda: False) is None
    assert capsys.readouterr().out == ""
    assert engine.requests == []
    assert (engine.steps, engine.followed) == (0, 2)


def test_a_prompt_that_cannot_be_read_submits_nothing():
    engine = Script(ANSWER)
    with pytest.raises(PromptError):
        run_generate(session_of(engine, "job.file=/nowhere/at/all"), True, lambda: False)
    assert engine.requests == []


def test_without_a_seed_one_is_drawn():
    seeds = {sampling_of(GenerationConf(), ()).seed for _ in range(20)}
    assert len(seeds) > 15
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert sampling_of(GenerationConf(seed=0), ()).seed == 0


def test_a_length_that_nobody_says_is_512_or_what_the_context_has_left():
    assert sampling_of(GenerationConf(), ()).max_tokens == 512
    assert sampling_of(GenerationConf(), (), room=9).max_tokens == 9
    assert sampling_of(GenerationConf(), (), room=4096).max_tokens == 512
    assert sampling_of(GenerationConf(max_new_tokens=600), (), room=9).max_tokens == 600


def test_a_long_prompt_leaves_its_answer_what_the_context_has_left():
    engine = Script(ANSWER)
    run_generate(session_of(engine, "prompt=" + "word " * 3900), True, lambda: False)
    (request,) = engine.requests
    assert 3900 < len(request.prompt) < 4096
    assert len(request.prompt) + request.sampling.max_tokens == engine.context


@pytest.mark.parametrize("as_json", [True, False])
def test_an_answer_that_was_cut_is_said_to_be(caplog, monkeypatch, as_json: bool):
    monkeypatch.setattr(logging.getLogger("gptoss_dist"), "propagate", True)
    answer(Script(ANSWER), "generation.max_new_tokens=4", as_json=as_json)
    assert "cut after 4 tokens; generation.max_new_tokens=NUMBER allows more" in caplog.text
    caplog.clear()
    answer(Script(ANSWER), as_json=as_json)
    assert "cut" not in caplog.text
    prompt = "prompt=" + "word " * 4036
    run_generate(session_of(Script(ANSWER), prompt), as_json, lambda: False)
    assert "at the end of the model's context of 4096" in caplog.text


def test_every_key_of_generation_reaches_the_engine():
    conf = GenerationConf(max_new_tokens=7, temperature=0.3, top_p=0.4, top_k=9, min_p=0.2, seed=11)
    sampling = sampling_of(conf, (1, 2))
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (7, 0.3, 0.4)
    assert (sampling.top_k, sampling.min_p, sampling.seed, sampling.stop_tokens) == (9, 0.2, 11, (1, 2))
