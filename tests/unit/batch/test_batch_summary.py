from __future__ import annotations

import pytest

from gptoss_dist.batch.progress import BatchProgress
from gptoss_dist.batch.summary import Tally, text_of


def chat_line(tokens: int, *reasons: str) -> dict:
    usage = {"prompt_tokens": 10, "completion_tokens": tokens, "completion_tokens_details": {"reasoning_tokens": 1}}
    body = {"choices": [{"finish_reason": reason} for reason in reasons], "usage": usage}
    return {"response": {"body": body}, "error": None}


RESPONSE = {
    "response": {
        "body": {
            "status": "incomplete",
            "usage": {"input_tokens": 5, "output_tokens": 7, "output_tokens_details": {"reasoning_tokens": 3}},
        }
    },
    "error": None,
}
ERROR = {"response": {"body": {}}, "error": {"code": "invalid_json", "message": ""}}


@pytest.fixture
def tally() -> Tally:
    tally = Tally()
    tally.line(chat_line(1, "stop"), 0.5)
    tally.line(chat_line(3, "stop", "length"), 1.5)
    tally.line(RESPONSE, 2.5)
    tally.line(ERROR)
    tally.tokens(11)
    return tally


def test_lines_are_counted_by_what_they_hold(tally: Tally):
    content = tally.content()
    assert (content["records"], content["answered"], content["errors"]) == (4, 3, {"invalid_json": 1})
    assert content["finish_reasons"] == {"stop": 2, "length": 1, "incomplete": 1}
    assert (content["prompt_tokens"], content["output_tokens"], content["reasoning_tokens"]) == (25, 11, 5)
    assert content["latency_s"] == {"p50": 1.5, "p90": 2.3, "p99": 2.48}
    assert content["output_length"] == {"p50": 3, "p90": 6.2, "p99": 6.92}


def test_the_text_for_a_person(tally: Tally):
    text = text_of(tally.content())
    assert text.splitlines()[0].startswith("answered     3 of 4 records in ")
    assert "errors       1 invalid_json\nended by     1 incomplete, 1 length, 2 stop\n" in text
    assert "latency      p50 1.5 s, p90 2.3 s, p99 2.48 s\n" in text


def test_nothing_has_a_summary_too():
    content = Tally().content()
    assert (content["latency_s"], content["tokens_per_s"]) == (None, None)
    assert "errors       none\nended by     nothing\n" in text_of(content)


def test_a_plain_line_says_what_is_left(tally: Tally, caplog):
    progress = BatchProgress(10, tally, line_s=0.0)
    line = progress.line(progress._begun + 4)
    assert line == "4 records done, 6 left, 3 tokens/s, 0:00:06 left"
    with caplog.at_level("INFO", logger="gptoss_dist.batch.progress"):
        progress.show()
    progress.close()
    assert BatchProgress(3, Tally()).line(progress._begun + 1).endswith("0 tokens/s, time left unknown")
