from __future__ import annotations

import json

import pytest
import yaml

from gptoss_dist.engine.request import Finish
from gptoss_dist.errors import ConfigError
from gptoss_dist.harmony.conversation import render
from gptoss_dist.harmony.vocab import load_encoding
from gptoss_dist.server.script import last_user_message, load_script


def prompt(*messages: tuple[str, str]) -> list[int]:
    return render([{"role": role, "content": text} for role, text in messages])


def write(tmp_path, content) -> str:
    file = tmp_path / "script.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(file)


def test_the_last_user_message_is_found():
    assert last_user_message(prompt(("user", "first"), ("assistant", "a"), ("user", "sec\nond <|end|> x"))) != "first"
    assert last_user_message(prompt(("user", "first"), ("assistant", "user said"), ("user", "second"))) == "second"
    assert last_user_message(load_encoding().encode("bare text")) == "bare text"


def test_the_first_entry_that_matches_answers(tmp_path):
    entries = [
        {"match": "a.b", "tokens": [1]},
        {"match": "/^x+$/", "tokens": [2], "delay_s": 0.5, "finish": "length"},
        {"tokens": [3]},
    ]
    book = load_script(write(tmp_path, entries))
    assert [book.choose(prompt(("user", text))).tokens for text in ("say a.b!", "acb", "xxx", "xxy")] == [
        (1,),
        (3,),
        (2,),
        (3,),
    ]
    chosen = book.choose(prompt(("user", "xx")))
    assert (chosen.delay_s, chosen.finish) == (0.5, Finish.length)


def test_json_is_yaml_too_and_texts_become_tokens(tmp_path):
    book = load_script(write(tmp_path, json.dumps([{"harmony": "<|channel|>final<|message|>hi<|return|>"}])))
    same = load_script(write(tmp_path, [{"text": "hi"}]))
    assert book.choose([1]).tokens == same.choose([1]).tokens
    assert book.choose([1]).tokens[-1] == 200002
    spelled = load_script(write(tmp_path, [{"text": "<|return|>"}])).choose([1]).tokens
    assert spelled.count(200002) == 1, "control tokens that a text spells are text"


def test_what_nothing_matches_is_said_so(tmp_path):
    tokens = load_script(write(tmp_path, [{"match": "x", "text": "y"}])).choose(prompt(("user", "z"))).tokens
    assert "no answer to this message" in load_encoding().decode(list(tokens))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("5", "a list of entries"),
        ([], "a list of entries"),
        ([5], "entry 0: no mapping"),
        ([{"text": "a"}, {"say": "b"}], "entry 1: unknown keys"),
        ([{"match": "a"}], "one of tokens, harmony, text"),
        ([{"text": "a", "tokens": [1]}], "there are 2"),
        ([{"tokens": []}], "a list of token ids"),
        ([{"tokens": ["a"]}], "a list of token ids"),
        ([{"text": 5}], "a text is needed"),
        ([{"harmony": ""}], "a text is needed"),
        ([{"text": "a", "match": 5}], "match: a text"),
        ([{"text": "a", "match": "/(/"}], "no regular expression"),
        ([{"text": "a", "delay_s": -1}], "delay_s=-1"),
        ([{"text": "a", "delay_s": "x"}], "delay_s='x'"),
        ([{"text": "a", "finish": "never"}], "finish='never'"),
    ],
)
def test_a_wrong_script_names_its_entry(tmp_path, content, message):
    with pytest.raises(ConfigError, match=r"engine\.script=.*" + message.replace("(", r"\(")):
        load_script(write(tmp_path, content))


def test_a_script_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no-such\.yaml: cannot be read"):
        load_script(str(tmp_path / "no-such.yaml"))
