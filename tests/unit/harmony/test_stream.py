from __future__ import annotations

import random

import pytest

from gptoss_dist.harmony.conversation import PromptOptions, render, render_example
from gptoss_dist.harmony.header import CHANNELS
from gptoss_dist.harmony.stream import Answer, Delta, Reader, tool_name

ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|channel|>final<|message|>"


@pytest.fixture
def read(encoding):
    """Reads a text with control tokens, or token ids; gives the answer and every delta, one list a token."""

    def read(emitted, hint=None, salt=""):
        tokens = encoding.encode(emitted, allowed_special="all") if isinstance(emitted, str) else emitted
        reader = Reader(salt)
        steps = [reader.feed(token) for token in tokens]
        steps.append(reader.flush())
        answer = reader.finish(hint)
        check_agreement(answer, [delta for step in steps for delta in step])
        return answer, steps

    return read


def check_agreement(answer, deltas):
    """What was streamed is what is answered."""
    for channel in CHANNELS:
        texts = [delta.text for delta in deltas if delta.channel == channel and delta.recipient is None]
        assert "".join(texts) == (getattr(answer, channel) or "")
    for call in answer.tool_calls:
        own = [delta for delta in deltas if delta.call_id == call.id]
        assert own[0].text == ""
        assert "".join(delta.text for delta in own) == call.arguments
        assert {tool_name(delta.recipient) for delta in own} == {call.name}


def calls(answer):
    return [(call.name, call.arguments) for call in answer.tool_calls]


def test_analysis_and_final(read):
    answer, steps = read(f"{ANALYSIS}Add them.<|end|><|start|>assistant{FINAL}2 + 2 = 4.<|return|>")
    assert answer == Answer(final="2 + 2 = 4.", analysis="Add them.", commentary=None, tool_calls=(), complete=True)
    assert [delta for step in steps for delta in step][:2] == [
        Delta("analysis", None, "Add"),
        Delta("analysis", None, " them"),
    ]


def test_text_comes_with_its_token_and_whole_characters_only(read, encoding):
    text = "é 日本 👩‍👩‍👧 ﷽ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 end"
    answer, steps = read(f"{FINAL}{text}<|return|>")
    assert answer.final == text
    assert "\ufffd" not in "".join(delta.text for step in steps for delta in step)
    assert steps[3] == [Delta("final", None, encoding.decode(encoding.encode(text)[:1]))]


def test_what_the_renderer_writes_the_reader_reads(read):
    schema = {"type": "object", "properties": {"place": {"type": "string"}}}
    options = PromptOptions(
        builtin_tools=("python",), tools=({"type": "function", "function": {"name": "weather", "parameters": schema}},)
    )
    call = {"id": "c", "function": {"name": "weather", "arguments": '{"place": "Zürich <|end|>"}'}}
    code = {"id": "p", "function": {"name": "python", "arguments": "print('é')\n"}}
    question = {"role": "user", "content": "?"}
    for message, expected in (
        ({"content": "Hi <|end|> there", "reasoning": "Think."}, Answer("Hi <|end|> there", "Think.", None, (), True)),
        ({"content": None, "reasoning": "Think.", "tool_calls": [call]}, [("weather", '{"place": "Zürich <|end|>"}')]),
        ({"content": "Looking.", "tool_calls": [call]}, [("weather", '{"place": "Zürich <|end|>"}')]),
        ({"content": None, "tool_calls": [code]}, [("python", "print('é')\n")]),
    ):
        _, completion = render_example([question, {"role": "assistant", **message}], options)
        answer, _ = read(completion)
        assert answer.complete
        assert expected in (answer, calls(answer))
        assert answer.commentary == (message["content"] if message.get("tool_calls") else None)


@pytest.mark.parametrize(
    "header",
    [
        "<|channel|>commentary to=functions.get_weather <|constrain|>json",
        "<|channel|>commentary to=functions.get_weather<|constrain|>json",
        "<|channel|>commentary to=functions.get_weather json",
        "<|channel|>commentary to=functions.get_weather",
        " to=functions.get_weather<|channel|>commentary <|constrain|>json",
        " to=functions.get_weather<|channel|>commentary",
        "<|channel|>analysis to=functions.get_weather code",
        "<|channel|>final to=functions.get_weather",
        "<|channel|>commentary functions.get_weather json",
        "<|channel|>commentary<|channel|>commentary to=functions.get_weather",
        "<|channel|>tool to=functions.get_weather json",
        " to=functions.get_weather",
        "commentary to=functions.get_weather extra words json",
    ],
)
def test_a_call_is_read_from_every_header_that_names_it(read, header):
    answer, steps = read(f'{header}<|message|>{{"place": "Rome"}}<|call|>')
    assert calls(answer) == [("get_weather", '{"place": "Rome"}')]
    assert answer.final is None
    assert answer.complete
    first = next(step for step in steps if step)
    assert first[0].recipient == "functions.get_weather"
    assert first[0].channel in ("analysis", "commentary")


def test_builtin_tools_keep_their_full_name(read):
    answer, _ = read('<|channel|>analysis to=browser.search code<|message|>{"query": "x"}<|call|>')
    assert calls(answer) == [("browser.search", '{"query": "x"}')]
    answer, _ = read("<|channel|>analysis to=python code<|message|>print(1)<|call|>")
    assert calls(answer) == [("python", "print(1)")]


def test_a_preamble_and_several_calls(read):
    answer, _ = read(
        f"{ANALYSIS}Plan.<|end|><|start|>assistant<|channel|>commentary<|message|>I will look.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.a json<|message|>{}<|call|>"
        "<|start|>assistant<|channel|>commentary to=functions.a json<|message|>{}<|call|>"
    )
    assert (answer.analysis, answer.commentary, answer.final) == ("Plan.", "I will look.", None)
    assert calls(answer) == [("a", "{}"), ("a", "{}")]
    assert len({call.id for call in answer.tool_calls}) == 2


def test_call_ids_depend_on_the_tokens_and_the_salt_alone(read):
    emitted = "<|channel|>commentary to=functions.a json<|message|>{}<|call|>"
    one, again = read(emitted)[0], read(emitted)[0]
    assert one.tool_calls[0].id == again.tool_calls[0].id
    assert one.tool_calls[0].id.startswith("call_")
    others = {
        read(emitted, salt="request 2")[0].tool_calls[0].id,
        read(f"{ANALYSIS}x<|end|>{emitted}")[0].tool_calls[0].id,
    }
    assert len(others | {one.tool_calls[0].id}) == 3


def test_messages_on_one_channel_are_parted_by_a_newline(read):
    answer, _ = read(
        f"{ANALYSIS}One.<|end|><|start|>assistant{ANALYSIS}Two.<|end|><|start|>assistant{FINAL}Done<|return|>"
    )
    assert (answer.analysis, answer.final) == ("One.\nTwo.", "Done")


@pytest.mark.parametrize(
    ("emitted", "final", "analysis"),
    [
        ("<|channel|>final <|constrain|>json<|message|>{}<|return|>", "{}", None),
        ("<|channel|>final json<|message|>{}<|return|>", "{}", None),
        ("Hello  there,\n world<|return|>", "Hello  there,\n world", None),
        ("Set to=3 and go<|return|>", "Set to=3 and go", None),
        ("<|message|>Hello<|return|>", "Hello", None),
        ("<|channel|><|message|>Hello<|return|>", "Hello", None),
        ("<|channel|>final Hello<|return|>", "Hello", None),
        ("<|channel|>Hello there<|return|>", "Hello there", None),
        ("<|channel|>answer<|message|>Hello<|return|>", "Hello", None),
        ("<|channel|>analysis<|channel|>final<|message|>Hello<|return|>", "Hello", None),
        ("<|channel|>final and more words here<|message|>Hello<|return|>", "Hello", None),
        (f"{ANALYSIS}Hm<|start|>assistant{FINAL}Hello<|return|>", "Hello", "Hm"),
        (f"{ANALYSIS}Hm{FINAL}Hello<|return|>", "Hello", "Hm"),
        (f"{ANALYSIS}Hm<|end|>{FINAL}Hello<|return|>", "Hello", "Hm"),
        (f"{ANALYSIS}Hm<|end|>assistant{FINAL}Hello<|return|>", "Hello", "Hm"),
        (f"{ANALYSIS}Hm<|end|><|start|>{FINAL}Hello<|return|>", "Hello", "Hm"),
        (f"{ANALYSIS}Hm<|end|><|start|><|start|>assistant{FINAL}Hello<|return|>", "Hello", "Hm"),
        (f"{ANALYSIS}Hm<|end|><|start|>assistantfinal<|message|>Hello<|return|>", "Hello", "Hm"),
        (f"{ANALYSIS}Hm<|end|><|start|>assistant<|message|>Hello<|return|>", "Hello", "Hm"),
        (f"{FINAL}a<|message|>b<|constrain|>c<|reserved_200013|>d<|startoftext|>e<|return|>", "abcde", None),
        (f"{FINAL}Hello<|endoftext|>", "Hello", None),
        (f"{FINAL}<|return|>", "", None),
    ],
)
def test_malformed_output_is_text_still(read, emitted, final, analysis):
    assert read(emitted)[0] == Answer(final, analysis, None, (), True)


def test_a_message_in_anothers_name_is_never_the_answer(read):
    for name in ("user", "system", "functions.f to=assistant", "tool"):
        answer, _ = read(f"{FINAL}Hello<|end|><|start|>{name}<|channel|>commentary<|message|>I am not you<|end|>")
        assert (answer.final, answer.analysis, answer.tool_calls) == ("Hello", "I am not you", ())


@pytest.mark.parametrize(
    ("emitted", "expected"),
    [
        ("", Answer(None, None, None, (), False)),
        ("<|channel|>", Answer(None, None, None, (), False)),
        ("<|channel|>fin", Answer(None, None, None, (), False)),
        ("<|channel|>final", Answer(None, None, None, (), False)),
        ("<|channel|>commentary to=functions.f <|constrain|>json", Answer(None, None, None, (), False)),
        (ANALYSIS, Answer(None, "", None, (), False)),
        (f"{ANALYSIS}So far", Answer(None, "So far", None, (), False)),
        (f"{ANALYSIS}Done.<|end|><|start|>assistant", Answer(None, "Done.", None, (), False)),
        (f"{ANALYSIS}Done.<|end|>", Answer(None, "Done.", None, (), False)),
    ],
)
def test_output_that_was_cut(read, emitted, expected):
    assert read(emitted, "length")[0] == expected


def test_a_call_that_was_cut_keeps_what_there_is(read):
    answer, _ = read('<|channel|>commentary to=functions.f json<|message|>{"a": [1, ', "length")
    assert calls(answer) == [("f", '{"a": [1, ')]
    assert not answer.complete


def test_a_call_without_message_token(read):
    assert calls(read('<|channel|>commentary to=functions.f <|constrain|>json{"a":1}<|call|>')[0]) == [("f", '{"a":1}')]
    assert calls(read("<|channel|>commentary to=functions.now<|call|>")[0]) == [("now", "")]


def test_a_character_cut_in_the_middle_is_replaced(read, encoding):
    whole = encoding.encode("a 🜛", allowed_special="all")
    cut = [*encoding.encode(FINAL, allowed_special="all"), *whole[:-1]]
    answer, steps = read(cut, "length")
    assert answer.final == "a \ufffd"
    assert steps[-1] == [Delta("final", None, "\ufffd")]


def test_the_hint_completes_a_turn_whose_stop_token_was_not_fed(read):
    assert read(f"{FINAL}Hello", "stop")[0].complete
    assert not read(f"{FINAL}Hello", "length")[0].complete
    assert not read(f"{FINAL}Hello")[0].complete


def test_an_answer_without_header_streams_after_a_while(read):
    text = "It goes on to=say and 日本 👩‍👩‍👧 on. " * 20
    answer, steps = read(f"{text}<|return|>")
    assert answer.final == text
    assert sum(bool(step) for step in steps) > 100


def test_flush_and_finish_may_be_called_again(read, encoding):
    reader = Reader()
    for token in encoding.encode(f"{FINAL}Hello", allowed_special="all"):
        reader.feed(token)
    assert reader.flush() == []
    assert reader.finish("stop") == reader.finish("stop") == Answer("Hello", None, None, (), True)


def test_no_sequence_of_tokens_is_refused_or_shows_a_control_token(read, encoding):
    rng = random.Random(11)
    harmless = [token for token in range(0, 199998, 7) if not set("<|>") & set(encoding.decode([token]))]
    words = [
        encoding.encode(word)[0]
        for word in ("analysis", "commentary", "final", "assistant", " to", "=", "user", " json")
    ]
    controls = list(range(199998, 200019))
    likely = [199999, 200002, 200003, 200005, 200005, 200006, 200007, 200008, 200008, 200012]
    outside = [-1, 201087, 201088, 300_000, 2**70]
    for _ in range(1500):
        pools = rng.choices(
            (harmless, words, controls, likely, outside), weights=(6, 4, 1, 4, 0.3), k=rng.randint(0, 80)
        )
        answer, steps = read([rng.choice(pool) for pool in pools], rng.choice([None, "stop", "length"]))
        shown = [delta.text for step in steps for delta in step]
        shown += [f"{call.name} {call.arguments}" for call in answer.tool_calls]
        assert not [text for text in shown if "<|" in text]


def test_the_renders_own_prompt_read_as_output_does_no_harm(read):
    tokens = render([{"role": "user", "content": "?"}], PromptOptions(builtin_tools=("browser",)))
    answer, _ = read(tokens)
    assert answer.final is None
    assert answer.analysis.startswith("You are ChatGPT")
