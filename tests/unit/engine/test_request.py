from __future__ import annotations

import dataclasses
import math

import pytest

from gptoss_dist.engine.request import Event, Finish, Request, Sampling, check_request
from gptoss_dist.errors import ConfigError


def test_defaults_change_nothing_of_the_distribution():
    sampling = Sampling(max_tokens=5)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1, 1, None, 0)
    assert sampling.stop_tokens == ()


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("max_tokens", (1, 10**6), (0, -1)),
        ("temperature", (0.0, 1e-6, 1.0, 5.0), (-0.1, math.nan, math.inf)),
        ("top_p", (1e-6, 1.0), (0.0, -1.0, 1.01, math.nan)),
        ("top_k", (None, 1, 10**6), (0, -1)),
        ("min_p", (0.0, 0.99), (1.0, -0.01, math.nan)),
        ("seed", (0, 2**63 - 1), (-1, 2**63)),
        ("presence_penalty", (-2.0, 2.0), (-2.1, 2.1, math.nan)),
        ("frequency_penalty", (-2.0, 2.0), (math.inf, -math.inf, math.nan)),
        ("repetition_penalty", (0.1, 10.0), (0.0, -1.0, 11.0, math.nan)),
        ("logprobs", (None, 0, 20), (-1,)),
    ],
)
def test_what_no_distribution_can_be_made_of_is_refused(name, good, bad):
    base = Sampling(max_tokens=1)
    for value in good:
        assert getattr(dataclasses.replace(base, **{name: value}), name) == value
    for value in bad:
        with pytest.raises(ConfigError, match=f"{name}="):
            dataclasses.replace(base, **{name: value})


def test_a_prompt_has_tokens():
    with pytest.raises(ConfigError, match="request r7: the prompt has no tokens"):
        Request("r7", (), Sampling(max_tokens=1))


def test_requests_and_events_are_values():
    sampling = Sampling(max_tokens=1, stop_tokens=(3,))
    assert Request("a", (1, 2), sampling) == Request("a", (1, 2), Sampling(max_tokens=1, stop_tokens=(3,)))
    assert hash(Request("a", (1, 2), sampling)) == hash(Request("a", (1, 2), sampling))
    event = Event("a", (1,), Finish.stop)
    assert event == Event("a", (1,), Finish.stop)
    for value, name in ((sampling, "seed"), (event, "tokens"), (Request("a", (1,), sampling), "id")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, 1)


def test_an_event_is_unfinished_until_it_says_so():
    assert Event("a", (1,)).finish is None
    assert {finish.value for finish in Finish} == {"stop", "length", "cancelled", "blocked"}


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (((3, math.nan),), "logit_bias: nan for token 3: must be a finite number"),
        (((3, 1.0), (4, -math.inf)), "logit_bias: -inf for token 4"),
        (((3, 1.0), (4, 1.0), (3, 1.0)), "logit_bias: token 3 comes twice"),
    ],
)
def test_a_bias_is_a_finite_number_once_a_token(bias, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(max_tokens=1, logit_bias=bias)


@pytest.mark.parametrize(
    ("sampling", "prompt", "message"),
    [
        ({}, (1, 50), "request r: token 50 is outside the model's vocabulary of 50"),
        ({"logit_bias": ((0, 1.0), (50, 1.0))}, (1,), "request r: logit_bias: token 50 is outside .* of 50"),
        ({"logit_bias": ((-1, 1.0),)}, (1,), "request r: logit_bias: token -1 is outside"),
        ({"logprobs": 51}, (1,), "request r: logprobs=51: the model has 50 tokens"),
    ],
)
def test_tokens_that_the_model_does_not_have_are_refused(sampling, prompt, message):
    check_request(Request("r", (0, 49), Sampling(1, logit_bias=((49, 1.0),), logprobs=50)), 50, 100)
    with pytest.raises(ConfigError, match=message):
        check_request(Request("r", prompt, Sampling(1, **sampling)), 50, 100)


@pytest.mark.parametrize(
    ("sampling", "quick"),
    [
        ({}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": 0.0, "top_p": 0.5, "top_k": 3, "min_p": 0.1}, True),
        ({"top_p": 0.5}, False),
        ({"top_k": 5}, False),
        ({"min_p": 0.1}, False),
        ({"logprobs": 0}, False),
        ({"logit_bias": ((1, 2.0),)}, False),
        ({"presence_penalty": 0.1}, False),
        ({"frequency_penalty": 0.1}, False),
        ({"repetition_penalty": 1.1}, False),
    ],
    ids=str,
)
def test_what_a_choice_needs(sampling, quick):
    assert Request("a", (1,), Sampling(max_tokens=1, **sampling)).quick == quick


def test_a_constrained_request_is_careful():
    assert not Request("a", (1,), Sampling(max_tokens=1), constraint=object()).quick
