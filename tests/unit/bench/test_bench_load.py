from __future__ import annotations

import dataclasses

import pytest

from gptoss_dist.bench.load import Kind, Row, check_load, prompt, prompts_of, rows_of
from gptoss_dist.config import compose_run
from gptoss_dist.errors import ConfigError
from gptoss_dist.schema.job.bench import BenchConf, BenchSuite


def conf(**keys) -> BenchConf:
    return BenchConf(name="bench", **keys)


def test_rows_of_streams_prefill_and_contexts():
    job = conf(streams=[1, 8], input_tokens=1024, output_tokens=128, prefill=["8192", "64x1024"], contexts=[32768])
    assert rows_of(job, 131072) == [
        Row(Kind.decode, 1, 1024, 128, 2),
        Row(Kind.decode, 8, 1024, 128, 16),
        Row(Kind.prefill, 1, 8192, 1, 1),
        Row(Kind.prefill, 64, 1024, 1, 64),
        Row(Kind.context, 1, 32768, 256, 1),
    ]


@pytest.mark.parametrize("streams", [[8], []])
def test_long_contexts_bring_the_short_one_they_are_compared_with(streams):
    rows = rows_of(conf(streams=streams, contexts=[2000], prefill=["1024"]), 131072)
    assert [row.input_tokens for row in rows if row.kind is Kind.context] == [1024, 2000]


@pytest.mark.parametrize(
    ("wanted", "prompt_tokens"), [(131072, 130816), (130900, 130816), (1000, 1000), (200000, 200000)]
)
def test_a_prompt_leaves_room_for_its_output_where_the_model_takes_it_at_all(wanted, prompt_tokens):
    assert rows_of(conf(contexts=[wanted]), 131072)[-1].input_tokens == prompt_tokens


def test_requests_instead_of_rounds_and_a_rate_instead_of_streams():
    assert [row.requests for row in rows_of(conf(streams=[1, 4], requests=10), None)] == [10, 10]
    assert rows_of(conf(streams=[1, 4], requests=10, rate=2.5), None) == [Row(Kind.decode, 0, 1024, 1024, 10, 2.5)]


def test_the_table():
    labels = [row.label for row in rows_of(conf(suite=BenchSuite.table), 131072)]
    assert labels == [
        "1 stream, 1024/1024",
        "64 streams, 1024/1024",
        "prefill 1x8192",
        "prefill 64x1024",
        "context 32768/256",
        "context 130816/256",
    ]


def test_the_words_of_the_command_line():
    words = [
        "job=bench",
        "job.streams=[1,8]",
        "job.prefill=[8192,64x1024]",
        "job.target=http://h:1/v1",
        "job.plot=a b.png",
    ]
    job = compose_run(words).job
    assert isinstance(job, BenchConf)
    assert (list(job.streams), list(job.prefill)) == ([1, 8], ["8192", "64x1024"])
    assert (job.target, job.plot) == ("http://h:1/v1", "a b.png")
    check_load(job)


@pytest.mark.parametrize(
    "word",
    ["job.stream=[1]", "job.streams=[one]", "job.suite=all", "job.rate=fast", "job.endpoint=rest", "job.streams=3"],
)
def test_wrong_words(word):
    with pytest.raises(ConfigError, match=word.partition("=")[0]):
        compose_run(["job=bench", word])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"input_tokens": 0}, "job.input_tokens=0"),
        ({"streams": [1, 0]}, "job.streams=[1, 0]"),
        ({"contexts": [-1]}, "job.contexts=[-1]"),
        ({"requests": 0}, "job.requests=0"),
        ({"prefill": ["64*1024"]}, "job.prefill=64*1024"),
        ({"prefill": ["0x1024"]}, "job.prefill=0x1024"),
        ({"rate": 0.0}, "job.rate=0.0"),
        ({"rate": float("nan")}, "job.rate=nan"),
        ({"sample_s": 0.0}, "job.sample_s=0.0"),
        ({"cancel_share": 1.5}, "job.cancel_share=1.5"),
        ({"first_tokens": 0}, "job.first_tokens=0"),
        ({"warmup_tokens": -1}, "job.warmup_tokens"),
        ({"streams": []}, "nothing to measure"),
        ({"streams": [], "soak_s": 5.0}, "job.streams"),
    ],
)
def test_numbers_that_no_load_can_be_made_of(keys, said):
    with pytest.raises(ConfigError) as error:
        check_load(conf(**keys))
    assert said in str(error.value)


def test_prompts_of():
    assert prompts_of("8192") == (1, 8192)
    assert prompts_of("64x1024") == (64, 1024)


def test_prompts_are_exact_seeded_and_share_nothing():
    prompts = [prompt(0, row, number, 50, 1000) for row in range(3) for number in range(20)]
    assert all(len(one) == 50 and 0 <= min(one) <= max(one) < 1000 for one in prompts)
    assert len({one[:16] for one in prompts}) == len(prompts)
    assert prompt(0, 1, 2, 50, 1000) == prompts[22]
    assert prompt(1, 1, 2, 50, 1000) != prompts[22]


def test_warm_up_is_the_same_load_in_short():
    row = Row(Kind.decode, 8, 1024, 1024, 16)
    assert row.warm_up(4) == dataclasses.replace(row, requests=8, output_tokens=4)
    assert Row(Kind.decode, 0, 10, 2, 9, 3.0).warm_up(16) == Row(Kind.decode, 1, 10, 2, 1)


def test_one_stream_gets_the_first_tokens_that_it_lacks():
    one = Row(Kind.decode, 1, 1024, 1024, 2)
    assert one.first_tokens(16) == Row(Kind.decode, 1, 1024, 1, 14)
    assert Row(Kind.prefill, 1, 8192, 1, 1).first_tokens(16) == Row(Kind.prefill, 1, 8192, 1, 15)
    assert one.first_tokens(2) is None
    assert Row(Kind.decode, 4, 1024, 1024, 8).first_tokens(16) is None
    assert Row(Kind.decode, 0, 1024, 1024, 8, 2.0).first_tokens(16) is None
    assert Row(Kind.context, 1, 131072, 256, 1).first_tokens(16) is None, "minutes"
