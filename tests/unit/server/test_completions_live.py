"""/v1/completions of a scripted server."""

from __future__ import annotations

import httpx
import openai
import pytest
from live_server import MODEL, serving
from openai.types import Completion
from server_streams import check_completion_stream, events_of

from gptoss_dist.harmony.vocab import load_encoding

TEXT = " two three four 😀 five"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    encoding = load_encoding()
    tokens = encoding.encode(TEXT)
    book = [
        {"match": "/^one/", "tokens": [*tokens, 200002]},
        {"match": "endless", "tokens": [200002, *tokens * 3, 200002]},
        {"match": "half", "tokens": [tokens[0], encoding.encode("👨‍👩‍👧")[0]]},
        {"tokens": [*encoding.encode(" other"), 200012]},
    ]
    with serving(book, tmp_path_factory.mktemp("plain")) as live:
        yield live


def ask(server, prompt, **fields) -> httpx.Response:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 100, **fields}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=30)


def whole(server, prompt, **fields) -> list[tuple[str, str]]:
    answer = ask(server, prompt, **fields)
    assert answer.status_code == 200, answer.text
    Completion.model_validate(answer.json(), strict=True)
    choices = answer.json()["choices"]
    assert [one["index"] for one in choices] == list(range(len(choices)))
    streamed = check_completion_stream(events_of(ask(server, prompt, stream=True, **fields).text), len(choices))
    texts = [(one["text"], one["finish_reason"]) for one in choices]
    assert [(one.content, one.finish_reason) for one in streamed] == texts
    return texts


@pytest.mark.parametrize(
    ("prompt", "fields", "expected"),
    [
        ("one", {}, [(TEXT, "stop")]),
        ("one", {"max_tokens": 2}, [(" two three", "length")]),
        ("one", {"stop": [" four"]}, [(" two three", "stop")]),
        ("one", {"echo": True}, [("one" + TEXT, "stop")]),
        (["one", "and"], {}, [(TEXT, "stop"), (" other", "stop")]),
        (["one", "and"], {"n": 2, "echo": True}, [("one" + TEXT, "stop")] * 2 + [("and other", "stop")] * 2),
        (load_encoding().encode("one"), {}, [(TEXT, "stop")]),
        ([load_encoding().encode("one"), [13]], {}, [(TEXT, "stop"), (" other", "stop")]),
        ("endless", {"ignore_eos": True, "max_tokens": 12}, [((TEXT * 3)[:0] or None, "length")]),
    ],
)
def test_every_kind_of_prompt_is_continued(plain, prompt, fields, expected):
    got = whole(plain, prompt, **fields)
    if expected[0][0] is None:
        assert [finish for _, finish in got] == ["length"]
        assert got[0][0].startswith(TEXT)
    else:
        assert got == expected


def test_tokens_at_least_and_at_most_are_the_same_number_then(plain):
    body = ask(plain, "endless", min_tokens=9, max_tokens=9).json()
    assert body["usage"]["completion_tokens"] == 9
    assert body["choices"][0]["finish_reason"] == "length"


def test_half_a_character_at_the_end_is_no_error(plain):
    ((text, _),) = whole(plain, "half")
    assert text.startswith(" two")


def test_log_probabilities_are_parallel_lists(plain):
    (choice,) = ask(plain, "one", logprobs=2).json()["choices"]
    logprobs = choice["logprobs"]
    assert len({len(logprobs[key]) for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}) == 1
    assert "".join(logprobs["tokens"][:3]) == " two three four"
    assert logprobs["text_offset"][:3] == [0, 4, 10]
    assert all(len(top) >= 2 for top in logprobs["top_logprobs"][:3])


def test_the_client_completes_whole_and_streaming(plain):
    with openai.OpenAI(base_url=f"{plain.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.completions.create(model=MODEL, prompt="one", max_tokens=50)
        assert answer.choices[0].text == TEXT
        assert answer.usage.prompt_tokens == 1
        stream = client.completions.create(model=MODEL, prompt="one", max_tokens=50, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == TEXT
