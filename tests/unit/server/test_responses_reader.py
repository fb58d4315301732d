from __future__ import annotations

import random

import pytest

from gptoss_dist.engine.request import Event, Finish, TokenLogprobs
from gptoss_dist.harmony.vocab import load_encoding
from gptoss_dist.server.answer import AnswerReader, Kind
from gptoss_dist.server.responses_reader import Closed, Opened, TurnReader, Written

NEXT = "<|end|><|start|>assistant"


def read(text: str, *, finish: Finish = Finish.stop, size: int = 1, **options) -> tuple[list, TurnReader]:
    """Steps of an answer that comes `size` tokens at a time, with log probabilities."""
    tokens = load_encoding().encode(text, allowed_special="all")
    reader, steps = TurnReader("salt", **options), []
    for place in range(0, len(tokens), size):
        part = tuple(tokens[place : place + size])
        ends = finish if place + size >= len(tokens) else None
        steps += reader.take(Event("r", part, ends, tuple(TokenLogprobs(-0.5, ()) for _ in part)))
    return steps, reader


def items(steps: list) -> list[tuple[Kind, str, str, bool]]:
    """(kind, channel, text, whole) of each item; they must open and close in turn."""
    out, opened, text = [], None, ""
    for step in steps:
        match step:
            case Opened():
                assert opened is None
                opened, text = step, ""
            case Written():
                assert opened is not None
                text += step.text
            case Closed():
                out.append((opened.kind, opened.channel, text, step.whole))
                opened = None
    assert opened is None
    return out


def test_each_harmony_message_is_an_item_without_what_separates_them():
    text = f"<|channel|>analysis<|message|>\nA{NEXT}<|channel|>final<|message|>\n\nB{NEXT}"
    text += f"<|channel|>analysis<|message|>\nC{NEXT}<|channel|>final<|message|>\n\nD{NEXT}"
    steps, _ = read(f"{text}<|channel|>final<|message|>E<|return|>")
    assert [(kind, text) for kind, _, text, _ in items(steps)] == [
        (Kind.reasoning, "\nA"),
        (Kind.content, "\n\nB"),
        (Kind.reasoning, "\nC"),
        (Kind.content, "\n\nD"),
        (Kind.content, "E"),
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_stop_text_ends_the_answer_wherever_the_tokens_end(size):
    text = f"<|channel|>analysis<|message|>STOP{NEXT}<|channel|>final<|message|>one two STOP three<|return|>"
    steps, reader = read(text, size=size, stop=["STOP"])
    assert [(text, whole) for _, _, text, whole in items(steps)] == [("STOP", True), ("one two ", True)]
    assert reader.finish_reason == "stop"


def test_what_is_held_back_for_a_stop_text_comes_at_the_end_of_its_message():
    steps, _ = read(
        f"<|channel|>commentary<|message|>one STO{NEXT}<|channel|>final<|message|>P<|return|>", stop=["STOP"]
    )
    assert [text for _, _, text, _ in items(steps)] == ["one STO", "P"]


def test_every_token_of_a_message_has_its_log_probability_once():
    text = f"<|channel|>analysis<|message|>a b c{NEXT}<|channel|>final<|message|>日本 👨‍👩‍👧 ü STO<|return|>"
    steps, _ = read(text, stop=["STOP"])
    chosen = [one.token for step in steps if isinstance(step, Written) for one in step.chosen]
    assert load_encoding().decode(chosen) == "日本 👨‍👩‍👧 ü STO"


@pytest.mark.parametrize(("finish", "whole"), [(Finish.length, False), (Finish.blocked, False), (Finish.stop, True)])
def test_an_item_that_was_cut_is_not_whole(finish, whole):
    steps, reader = read("<|channel|>final<|message|>half", finish=finish)
    assert items(steps) == [(Kind.content, "final", "half", whole)]
    assert reader.finish_reason == ("stop" if whole else "length")


def test_a_second_call_is_not_begun_where_one_is_wanted():
    call = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}"
    steps, reader = read(f"{call}{NEXT}{call}<|call|>", functions=["f"], one_call=True)
    assert [text for *_, text, _ in items(steps)] == ["{}"]
    assert reader.finish_reason == "stop"


def test_an_answer_of_nothing_is_an_empty_message():
    assert items(read("<|return|>")[0]) == [(Kind.content, "final", "", True)]
    assert items(read("<|channel|>", finish=Finish.length)[0]) == []


def test_tokens_are_counted():
    _, reader = read(f"<|channel|>analysis<|message|>one two{NEXT}<|channel|>final<|message|>three<|return|>")
    assert (reader.tokens, reader.reasoning_tokens) == (13, 2)


@pytest.mark.parametrize("finish", [Finish.stop, Finish.length])
def test_random_tokens_say_the_same_as_in_chat(finish):
    chance = random.Random(2)
    controls = [199998, 200000, 200001, 200003, 200005, 200006, 200007, 200008, 201087]
    words = load_encoding().encode("assistant analysis commentary final to=functions.f json {} user é STOP 日本")
    for _ in range(300):
        tokens = [chance.choice(controls if chance.random() < 0.5 else words) for _ in range(chance.randrange(1, 90))]
        options = {"stop": ["STOP"], "functions": chance.choice([(), ("f",)]), "one_call": chance.random() < 0.5}
        turn, chat = TurnReader("salt", **options), AnswerReader("salt", **options)
        steps = []
        for place, token in enumerate(tokens):
            event = Event("r", (token,), finish if place == len(tokens) - 1 else None)
            steps += turn.take(event)
            chat.take(event)
        found = items(steps)
        texts = {kind: "".join(text for one, _, text, _ in found if one is kind) for kind in Kind}
        assert squeezed(texts[Kind.reasoning]) == squeezed(chat.reasoning or "")
        assert squeezed(texts[Kind.content]) == squeezed(chat.content or "")
        assert [text for kind, _, text, _ in found if kind is Kind.call] == [call.arguments for call in chat.calls]
        assert (turn.tokens, turn.reasoning_tokens) == (chat.tokens, chat.reasoning_tokens)
        assert (turn.finish_reason == "length") == (chat.finish_reason == "length")


def squeezed(text: str) -> str:
    """Without what chat puts between messages."""
    return text.replace("\n", "")
