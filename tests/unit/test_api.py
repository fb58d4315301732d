"""The library's door in one process, over a real model; several ranks: tests/multi/test_generate.py."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import openai_harmony
import pytest
import torch
from transformers import AutoTokenizer

import gptoss_dist
from gptoss_dist.engine.request import Event
from gptoss_dist.errors import ConfigError
from gptoss_dist.harmony.vocab import load_encoding
from gptoss_dist.model.tiny_conversations import CONVERSATIONS
from gptoss_dist.shapes import EOS_TOKENS

WORDS = ("cluster.device=cpu", "generation.seed=7", "generation.max_new_tokens=6")
HELLO = [{"role": "user", "content": "Hello"}]
PLAN = "name: mine\ndp: 1\ntp: null\nrules:\n  lm_head: colwise_gather_output\n"


@pytest.fixture(scope="module")
def model(random_toy: Path) -> Iterator[gptoss_dist.Model]:
    with gptoss_dist.load(str(random_toy), plan="single", overrides=WORDS) as model:
        yield model


def test_tokens_continue_a_text_and_its_ids_alike(model):
    found = model.generate("One, two", temperature=0, stop_tokens=())
    assert len(found) == 6
    ids = load_encoding().encode("One, two")
    assert model.generate(ids, temperature=0, stop_tokens=()) == found
    assert model.generate(torch.tensor(ids), temperature=0, stop_tokens=()) == found


def test_a_stop_token_is_the_last_one(model):
    whole = model.generate("One, two", temperature=0, stop_tokens=())
    ended = model.generate("One, two", temperature=0, stop_tokens=whole[2:3])
    assert ended == whole[: whole.index(whole[2]) + 1]


def test_by_default_the_output_ends_where_transformers_ends_it(model, monkeypatch):
    asked = []
    submit = model.session.engine.submit
    monkeypatch.setattr(model.session.engine, "submit", lambda request: (asked.append(request), submit(request)))
    model.generate("One")
    assert asked[0].sampling.stop_tokens == EOS_TOKENS


def test_an_answer_whose_length_nobody_says_may_fill_the_context(model, monkeypatch):
    monkeypatch.setattr(type(model.session.engine), "context", 12)
    assert len(model.generate([1] * 7, temperature=0, max_new_tokens=None, stop_tokens=())) == 5


def test_a_batch_of_ids_is_refused(model):
    with pytest.raises(ConfigError, match="Of a batch"):
        model.generate(torch.ones(1, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"do_sample": True}, r"do_sample: no such sampling key\. Known: max_new_tokens, .* temperature=0 is greedy"),
        ({"eos_token_id": 3}, "stop_tokens"),
        ({"tempature": 1}, r"tempature: no such sampling key\. Known: .*reasoning_effort\.$"),
        ({"temperature": 3}, "temperature=3"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"top_p": None}, "top_p=None"),
        ({"stop": "END"}, "stop='END'"),
        ({"stop": [""]}, "empty text"),
        ({"reasoning_effort": "huge"}, "reasoning_effort='huge'"),
    ],
)
def test_a_sampling_key_is_checked_as_on_the_command_line(model, keys: dict, said: str):
    for call in (model.chat, model.__call__):
        with pytest.raises(ConfigError, match=said):
            call(HELLO, **keys)


def test_stop_texts_belong_to_chat(model):
    with pytest.raises(ConfigError, match="generate takes no stop texts"):
        model.generate("One", stop=["two"])


def test_an_effort_said_with_a_call_wins_over_the_options(model, monkeypatch):
    asked = []
    submit = model.session.engine.submit
    monkeypatch.setattr(model.session.engine, "submit", lambda request: (asked.append(request), submit(request)))
    options = gptoss_dist.PromptOptions(reasoning_effort="low", current_date="2025-06-28")
    model.chat(HELLO, options=options)
    model.chat(HELLO, options=options, reasoning_effort="high")
    model.chat(HELLO, reasoning_effort="high")
    first, second, third = (load_encoding().decode(one.prompt) for one in asked)
    assert "Reasoning: low" in first
    assert "Reasoning: high" in second
    assert "2025-06-28" in second
    assert "Reasoning: high" in third


def test_it_is_called_as_a_pipeline_is(model):
    text = model("One, two", temperature=0)[0]["generated_text"]
    assert text.startswith("One, two")
    assert model(["One, two", "One, two"], temperature=0) == [[{"generated_text": text}]] * 2
    messages = model(HELLO, temperature=0)[0]["generated_text"]
    assert messages[0] == HELLO[0]
    assert messages[1]["role"] == "assistant"
    assert model([HELLO, HELLO], temperature=0) == [[{"generated_text": messages}]] * 2


def test_a_stream_that_is_left_early_leaves_nothing_to_the_next_answer(model):
    alone = model.chat(HELLO)
    for _ in model.stream([{"role": "user", "content": "Count to a hundred."}], max_new_tokens=200):
        break
    assert not model.session.engine.has_work
    assert model.chat(HELLO) == alone


def test_a_call_ends_a_stream_that_is_still_held(model):
    alone = model.chat(HELLO)
    held = model.stream([{"role": "user", "content": "Count to a hundred."}], max_new_tokens=200)
    next(held)
    assert model.chat(HELLO) == alone
    assert list(held) == []
    assert model.chat(HELLO) == alone


def test_an_interrupted_call_leaves_nothing_to_the_next_answer(model, monkeypatch):
    alone, engine, steps = model.chat(HELLO), model.session.engine, []
    step, before = engine.step, signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupted() -> list[Event]:
        if len(steps) == 2:
            signal.raise_signal(signal.SIGINT)
        steps.append(step())
        return steps[-1]

    with monkeypatch.context() as patch:
        patch.setattr(engine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.generate("Count to a hundred.", max_new_tokens=200)
    signal.signal(signal.SIGINT, before)
    assert len(steps) == 3, "the step went on to its end, and was the last"
    assert model.chat(HELLO) == alone
    assert not engine.has_work


def test_the_plan_of_a_preset_is_taken(random_toy: Path):
    with gptoss_dist.load(str(random_toy), overrides=[*WORDS, "preset=guide", "kernels=auto"]) as model:
        assert model.session.loaded.plan.name == "ep"
        assert model.session.run.generation.max_new_tokens == 6


def test_a_folder_of_choices_of_one_s_own(random_toy: Path, tmp_path: Path):
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "mine.yaml").write_text(PLAN)
    with gptoss_dist.load(str(random_toy), plan="mine", overrides=WORDS, conf=tmp_path) as model:
        assert model.session.loaded.plan.name == "mine"
    with pytest.raises(ConfigError, match="plan=mine: no such choice"):
        gptoss_dist.load(str(random_toy), plan="mine")


# ── what the transformers guide does, with its own libraries around ours ─────────────────────────────────────────────

CAPITAL = next(one for one in CONVERSATIONS if one.name == "capital")


@pytest.fixture(scope="module")
def toy() -> Iterator[gptoss_dist.Model]:
    with gptoss_dist.load("tiny", plan="single", overrides=["cluster.device=cpu", "generation=greedy"]) as model:
        yield model


def test_the_tokenizer_s_chat_template_around_generate(toy):
    tokenizer = AutoTokenizer.from_pretrained(toy.folder)
    inputs = tokenizer.apply_chat_template(
        CAPITAL.messages, add_generation_prompt=True, return_dict=True, return_tensors="pt", current_date=""
    )
    said = tokenizer.decode(toy.generate(inputs["input_ids"][0]))
    assert said.endswith(f"<|channel|>final<|message|>{CAPITAL.answer_text}<|return|>")


def test_openai_harmony_around_generate(toy):
    encoding = load_encoding()
    user = openai_harmony.Message.from_role_and_content(openai_harmony.Role.USER, CAPITAL.messages[0]["content"])
    system = openai_harmony.Message.from_role_and_content(
        openai_harmony.Role.SYSTEM, openai_harmony.SystemContent.new()
    )
    conversation = openai_harmony.Conversation.from_messages([system, user])
    prefill = encoding.render_conversation_for_completion(conversation, openai_harmony.Role.ASSISTANT)
    completion = toy.generate(prefill, stop_tokens=encoding.stop_tokens_for_assistant_actions(), max_new_tokens=128)
    entries = encoding.parse_messages_from_completion_tokens(completion, openai_harmony.Role.ASSISTANT)
    assert entries[-1].channel == "final"
    assert entries[-1].content[0].text == CAPITAL.answer_text


def test_the_pipeline_s_call(toy):
    answer = toy(CAPITAL.messages, max_new_tokens=200)[0]["generated_text"]
    assert answer[:-1] == list(CAPITAL.messages)
    assert answer[-1] == {"role": "assistant", "content": CAPITAL.answer_text, "thinking": CAPITAL.analysis}
