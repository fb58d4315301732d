from __future__ import annotations

import json
import random
import statistics

import numpy as np
import pytest

from gptoss_dist.bench.load import Kind, Row
from gptoss_dist.bench.records import Loads, Record, Records
from gptoss_dist.bench.statistics import blank, compare_contexts, compare_with_limit, percentile, summarize
from gptoss_dist.engine.request import Finish
from gptoss_dist.limits import Limit

ROW = Row(Kind.decode, 2, 100, 5, 3)


def record(due: float, first: float, gap: float, count: int = 5, prompt: int = 100) -> Record:
    return Record(prompt, 5, due, [(first + gap * place, 1) for place in range(count)], finished=True)


def test_percentile_is_numpy_s():
    generator = random.Random(3)
    for count in (1, 2, 3, 10, 101):
        values = [generator.uniform(-5, 5) for _ in range(count)]
        for percent in (0, 1, 50, 90, 99, 100):
            assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)))
    assert percentile([], 50) is None


def test_numbers_of_three_requests_on_two_streams():
    records = [record(0.0, 1.0, 0.25), record(0.0, 3.0, 0.5), record(2.0, 4.0, 1.0)]
    found = summarize(ROW, Loads(records))
    assert (found.status, found.finished, found.errors, found.short) == ("done", 3, 0, 0)
    assert found.wall_s == 8.0
    assert (found.total_input_tokens, found.total_output_tokens) == (300, 15)
    assert found.output_tokens_per_s == 15 / 8
    assert found.decode_tokens_per_s == statistics.median([4.0, 2.0, 1.0])
    assert found.ttft_p50_ms == 2000
    assert found.ttft_p99_ms == pytest.approx(2980)
    assert found.itl_p50_ms == 500
    assert found.itl_p99_ms == 1000
    assert found.prefill_tokens_per_s == 200 / 3  # the first two are the wave
    assert (found.decode_samples, found.ttft_samples, found.itl_samples, found.prefill_samples) == (3, 3, 12, 1)
    json.dumps(found.content())


def test_who_takes_the_place_of_a_failed_request_is_not_of_the_first_wave():
    records = [record(0.0, 1.0, 0.25), record(0.0, 0.5, 0.25), record(0.5, 9.0, 0.25)]
    records[1].error = "HTTP 503"
    found = summarize(ROW, Loads(records))
    assert found.prefill_tokens_per_s == 100 / 1.0
    assert found.ttft_samples == 2, "it counts for the rest"
    records[0].error = "HTTP 503"
    assert summarize(ROW, Loads(records)).prefill_tokens_per_s is None


def test_first_tokens_of_one_stream_are_those_of_all_its_prompts():
    one = Row(Kind.decode, 1, 100, 5, 2)
    more = [record(float(at), at + 0.5, 0.0, count=1) for at in range(10, 23)]
    more[-1].error = "HTTP 503"
    found = summarize(one, Loads([record(0.0, 2.0, 0.25), record(3.0, 4.0, 0.25)], more))
    assert (found.ttft_p50_ms, found.ttft_samples) == (500, 14)
    assert (found.prefill_tokens_per_s, found.prefill_samples) == (200, 14)
    assert (found.decode_samples, found.itl_samples, found.finished, found.total_output_tokens) == (2, 8, 2, 10)
    assert (found.wall_s, found.errors) == (5.0, 1)


def test_a_failed_warm_up_is_a_failed_request():
    warm_up = [record(0.0, 1.0, 0.25), Record(100, 2, 0.0, error="HTTP 503")]
    found = summarize(ROW, Loads([record(0.0, 1.0, 0.25)], warm_up=warm_up))
    assert (found.errors, found.messages, found.finished, found.ttft_samples) == (1, {"HTTP 503": 1}, 1, 1)


def test_tokens_that_arrive_together_share_the_gap_and_the_first_ones_are_not_decoded():
    one = Record(10, 7, 0.0, [(1.0, 3), (2.0, 4)], finished=True)
    assert one.gaps == [0.25] * 4
    assert one.decode_rate == 4.0
    assert one.output_tokens == 7


def test_the_server_s_count_wins():
    one = Record(10, 9, 0.0, [(1.0, 1), (2.0, 1), (3.0, 1)], reported_tokens=9, finished=True)
    assert one.output_tokens == 9
    assert one.decode_rate == 4.0


def test_errors_count_and_are_in_no_number():
    records = [record(0.0, 1.0, 0.25), record(0.0, 90.0, 9.0), record(0.0, 95.0, 9.0)]
    records[1].error = records[2].error = "HTTP 503"
    found = summarize(ROW, Loads(records))
    assert (found.errors, found.messages, found.wall_s, found.finished) == (2, {"HTTP 503": 2}, 2.0, 1)


def test_short_and_unfinished_requests():
    records = [record(0.0, 1.0, 0.25, count=3), record(0.0, 1.0, 0.25, count=2)]
    records[1].finished = False
    found = summarize(ROW, Loads(records), partial=True)
    assert (found.short, found.finished, found.status, found.total_output_tokens) == (1, 1, "partial", 5)


def test_nothing_answered_gives_no_numbers():
    found = summarize(ROW, Loads([Record(5, 5, 0.0)]), partial=True)
    assert (found.wall_s, found.output_tokens_per_s, found.ttft_p50_ms) == (None, None, None)
    one_token = summarize(ROW, Loads([Record(5, 1, 0.0, [(1.0, 1)], finished=True)]))
    assert (one_token.decode_tokens_per_s, one_token.itl_p50_ms) == (None, None)


def test_fractions_of_the_limit():
    found = summarize(ROW, Loads([record(0.0, 1.0, 0.25), record(0.0, 1.0, 0.25)]))
    compare_with_limit(found, Limit(16.0, "note"))
    assert (found.limit_tokens_per_s, found.limit_note) == (16.0, "note")
    assert found.fraction == 2 * 4.0 / 16
    assert found.fraction_in_all == (10 / 2.0) / 16
    prefill = summarize(Row(Kind.prefill, 1, 100, 1, 1), Loads([record(0.0, 2.0, 0.0, count=1)]))
    compare_with_limit(prefill, Limit(100.0))
    assert (prefill.fraction, prefill.fraction_in_all) == (0.5, None)
    compare_with_limit(found := blank(ROW), Limit(None, "unknown"))
    assert found.fraction is None


def test_long_contexts_against_one_stream_of_1024():
    rows = [
        Row(Kind.decode, 1, 64, 8, 1),
        Row(Kind.prefill, 1, 1024, 1, 1),
        Row(Kind.context, 1, 1024, 8, 1),
        Row(Kind.context, 1, 9000, 8, 1),
    ]
    results = [blank(row) for row in rows]
    for result, rate in zip(results, (50.0, None, 10.0, 8.0), strict=True):
        result.decode_tokens_per_s = rate
    compare_contexts(results)
    assert [one.loss for one in results] == [None, None, None, pytest.approx(0.2)]
    decoded = blank(Row(Kind.decode, 1, 1024, 8, 1))
    decoded.decode_tokens_per_s = 16.0
    compare_contexts([decoded, results[-1]])
    assert results[-1].loss == 0.5


def test_records_take_in_what_a_driver_says():
    records = Records()
    records.sent(4, 0.5, 10, 2)
    records.tokens(4, 1.0, 1)
    records.tokens(4, 1.5, 1)
    records.ended(4, Finish.length)
    assert records.by_number == {4: Record(10, 2, 0.5, [(1.0, 1), (1.5, 1)], finished=True)}
    assert records.by_number[4].time_to_first == 0.5


def test_a_request_that_the_engine_gives_up_has_failed():
    records = Records()
    for number, finish in enumerate(Finish):
        records.sent(number, 0.0, 10, 2)
        records.ended(number, finish)
    found = {
        finish: (one.finished, one.error is not None)
        for finish, one in zip(Finish, records.by_number.values(), strict=True)
    }
    assert found == {
        Finish.stop: (True, False),
        Finish.length: (True, False),
        Finish.cancelled: (False, False),
        Finish.blocked: (False, True),
    }
