from __future__ import annotations

import json
import random

import pytest

from gptoss_dist.engine.request import Finish
from gptoss_dist.harmony.vocab import load_encoding
from gptoss_dist.jobs.readers import HarmonyReader, PlainReader, TextReader, reader_for
from gptoss_dist.schema.job.generate import Template

ENCODING = load_encoding()
FINAL = "<|channel|>final<|message|>"
ANALYSIS = "<|channel|>analysis<|message|>"
END = "<|end|><|start|>assistant"
FAMILY = "👩‍👩‍👧‍👦"


def tokens_of(text: str) -> list[int]:
    return list(ENCODING.encode(text, allowed_special="all"))


def broken_up(text: str, seed: int) -> list[int]:
    """Tokens of the same text, cut in places where its own tokens do not end."""
    chance, tokens, start = random.Random(seed), [], 0
    while start < len(text):
        stop = start + chance.randint(1, 4)
        tokens += ENCODING.encode(text[start:stop], allowed_special=set(), disallowed_special=())
        start = stop
    return tokens


class Streamed:
    """A reader fed to its end, or until it stopped, with everything it showed on the way."""

    def __init__(self, reader: TextReader, tokens: list[int], reason: Finish = Finish.stop, show: bool = True) -> None:
        self.shown = ""
        self.fed = 0
        for token in tokens:
            if reader.stopped:
                break
            reader.feed(token)
            self.fed += 1
            self._show(reader, show)
        self.stopped_early = reader.stopped
        self.answer = reader.finish(Finish.cancelled if reader.stopped else reason)
        self._show(reader, show)
        self.text = reader.text(show)

    def _show(self, reader: TextReader, show: bool) -> None:
        new = reader.take(show)
        self.shown += new
        assert reader.text(show).startswith(self.shown), "what was shown must not be taken back"


def harmony(text: str, stop: tuple[str, ...] = (), reason: Finish = Finish.stop, show: bool = True) -> Streamed:
    return Streamed(HarmonyReader(stop), tokens_of(text), reason, show)


# ── harmony: channels ────────────────────────────────────────────────────────────────────────────────────────────────


def test_channels_are_told_apart_and_labelled():
    done = harmony(f"{ANALYSIS}Let me see.{END}{FINAL}Four.<|return|>")
    assert done.answer == {
        "final": "Four.",
        "analysis": "Let me see.",
        "commentary": None,
        "tool_calls": [],
        "finish_reason": "stop",
    }
    assert done.shown == done.text == "analysis: Let me see.\n\nfinal: Four."


def test_analysis_can_be_hidden_and_is_still_in_the_answer():
    done = harmony(f"{ANALYSIS}Let me see.{END}{FINAL}Four.<|return|>", show=False)
    assert done.shown == done.text == "final: Four."
    assert done.answer["analysis"] == "Let me see."


def test_only_analysis_hidden_shows_nothing():
    done = harmony(f"{ANALYSIS}Hm", show=False, reason=Finish.length)
    assert done.shown == done.text == ""
    assert (done.answer["final"], done.answer["analysis"], done.answer["finish_reason"]) == (None, "Hm", "length")


def test_tool_calls_are_json_with_ids_and_names():
    call = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Zürich"}<|call|>'
    done = harmony(f"{ANALYSIS}I need the weather.{END}{call}")
    (one,) = done.answer["tool_calls"]
    assert json.loads(json.dumps(one)) == {"id": one["id"], "name": "get_weather", "arguments": '{"city": "Zürich"}'}
    assert one["id"].startswith("call_")
    assert done.answer["finish_reason"] == "tool_calls"
    assert done.answer["final"] is None
    assert done.shown == 'analysis: I need the weather.\n\ncall get_weather: {"city": "Zürich"}'


def test_two_calls_in_a_row_are_two_lines_even_to_the_same_tool():
    call = "<|channel|>commentary to=functions.f<|message|>{}"
    done = harmony(f"{call}{END}{call}<|call|>")
    assert [one["name"] for one in done.answer["tool_calls"]] == ["f", "f"]
    assert len({one["id"] for one in done.answer["tool_calls"]}) == 2
    assert done.shown == "call f: {}\n\ncall f: {}"


def test_a_preamble_is_commentary_and_a_builtin_keeps_its_name():
    call = "<|channel|>analysis to=browser.search<|message|>{}<|call|>"
    done = harmony(f"<|channel|>commentary<|message|>I will search.{END}{call}")
    assert done.answer["commentary"] == "I will search."
    assert done.answer["tool_calls"][0]["name"] == "browser.search"
    assert done.shown == "commentary: I will search.\n\ncall browser.search: {}"


def test_a_call_cut_short_is_no_finished_call():
    done = harmony('<|channel|>commentary to=functions.f<|message|>{"a": ', reason=Finish.length)
    assert done.answer["finish_reason"] == "length"
    assert done.answer["tool_calls"][0]["arguments"] == '{"a": '


@pytest.mark.parametrize("reason", [Finish.length, Finish.cancelled])
def test_an_answer_cut_short_says_why(reason):
    done = harmony(f"{FINAL}One, two", reason=reason)
    assert (done.answer["final"], done.answer["finish_reason"]) == ("One, two", reason.value)
    assert done.shown == "final: One, two"


def test_no_tokens_at_all():
    done = Streamed(HarmonyReader(()), [], Finish.length)
    assert (done.shown, done.text, done.answer["final"]) == ("", "", None)


def test_text_without_a_header_is_shown_once_it_is_known_to_be_text():
    done = harmony("Just an answer without any header.", reason=Finish.length)
    assert "Just an answer without any header." in done.shown
    assert done.shown == done.text


def test_control_tokens_end_the_engines_request_and_are_never_text():
    assert set(HarmonyReader(()).stop_tokens) == {200002, 200012, 199999}
    done = harmony(f"{FINAL}a<|end|><|endoftext|>")
    assert "<|" not in done.shown


# ── stop texts ───────────────────────────────────────────────────────────────────────────────────────────────────────

_STORIES = (
    ("The END is near. END of story.", ("END",)),
    ("aaaaab and more", ("aab",)),
    ("one\ntwo\nthree", ("\nthree",)),
    ("ababac tail", ("abac", "never")),
    ("x stop1 y stop2 z", ("stop2", "stop1")),
    ("abcdef", ("cd", "bcde")),
    ("nothing of the kind", ("zzz",)),
    ("ends with a beginning of STO", ("STOP",)),
    ("ends with half of it: <|", ("<|stop|>",)),
    (f"family {FAMILY} here", (FAMILY,)),
    (f"family {FAMILY} here", ("👧",)),
    ("STOP", ("STOP",)),
    ("é" * 9 + "ü", ("éü",)),
    ("repeat repeat repeat", ("repeat repeat!",)),
)


@pytest.mark.parametrize(("story", "stops"), _STORIES)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("raw", [False, True])
def test_stop_texts_are_cut_wherever_tokens_end(story, stops, seed, raw):
    """Against a letter-by-letter search, for tokens that border anywhere."""
    wanted, found = story, False
    for end in range(len(story), 0, -1):
        complete = [stop for stop in stops if story[:end].endswith(stop)]
        if complete:
            wanted, found = story[: end - max(map(len, complete))], True
    tokens = broken_up(story, seed)
    reader = PlainReader(stops) if raw else HarmonyReader(stops)
    done = Streamed(reader, tokens if raw else [*tokens_of(FINAL), *tokens, *tokens_of("<|return|>")], Finish.stop)
    assert done.answer["final"] == wanted
    assert done.answer["finish_reason"] == "stop"
    assert done.stopped_early == found
    assert done.shown == done.text == ("" if raw else "final: ") + wanted


def test_a_reader_stops_at_the_token_that_completes_the_stop_text():
    tokens = [*tokens_of(FINAL), *tokens_of("one two STOP three four")]
    done = Streamed(HarmonyReader(("STOP",)), tokens)
    assert ENCODING.decode(tokens[: done.fed]).endswith("STOP")


def test_what_may_begin_a_stop_text_is_held_back_and_shown_when_it_does_not():
    reader = HarmonyReader(("STOP",))
    for token in (*tokens_of(FINAL), *broken_up("go ST", 0)):
        reader.feed(token)
    assert reader.take(True) == "final: go "
    for token in ENCODING.encode("UFF"):
        reader.feed(token)
    assert reader.take(True) == "STUFF"


def test_what_was_held_back_is_shown_at_the_end():
    for reader, label in ((PlainReader(("STOP",)), ""), (HarmonyReader(("STOP",)), "final: ")):
        tokens = [*tokens_of(FINAL if label else ""), *ENCODING.encode("go STO")]
        for token in tokens:
            reader.feed(token)
        assert reader.take(True) == f"{label}go "
        reader.finish(Finish.length)
        assert reader.take(True) == "STO"
        assert reader.take(True) == ""


def test_stop_texts_are_looked_for_in_final_alone():
    call = '<|channel|>commentary to=functions.f<|message|>{"a": "STOP"}'
    done = harmony(f"{ANALYSIS}a STOP sign{END}{call}{END}{FINAL}halt STOP gone<|return|>", ("STOP",))
    assert done.answer["analysis"] == "a STOP sign"
    assert done.answer["tool_calls"][0]["arguments"] == '{"a": "STOP"}'
    assert done.answer["final"] == "halt "
    assert done.answer["finish_reason"] == "stop"
    assert done.shown.endswith("final: halt ")


def test_after_a_stop_text_nothing_is_taken_in():
    reader = HarmonyReader(("STOP",))
    for token in tokens_of(f"{FINAL}a STOP b{END}{FINAL}c<|return|>"):
        reader.feed(token)  # a caller that does not look at `stopped`
        reader.take(True)
    assert reader.stopped
    assert reader.text(True) == "final: a "
    assert reader.finish(Finish.stop)["final"] == "a "


# ── bare text ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_plain_text_has_no_channels():
    done = Streamed(PlainReader(()), tokens_of("It is <b>bold</b>."), Finish.length)
    assert done.answer == {
        "final": "It is <b>bold</b>.",
        "analysis": None,
        "commentary": None,
        "tool_calls": [],
        "finish_reason": "length",
    }
    assert done.shown == done.text == "It is <b>bold</b>."


def test_the_end_of_text_is_not_part_of_it():
    assert PlainReader(()).stop_tokens == (199999,)
    done = Streamed(PlainReader(()), tokens_of("a<|endoftext|>"))
    assert done.answer["final"] == "a"


@pytest.mark.parametrize("raw", [False, True])
def test_half_a_character_waits_for_its_rest(raw):
    text = f"a {FAMILY} ﷽ z"
    reader = PlainReader(()) if raw else HarmonyReader(())
    tokens = tokens_of(text)
    assert len(tokens) > len(text) / 2
    done = Streamed(reader, tokens if raw else [*tokens_of(FINAL), *tokens], Finish.length)
    assert done.shown == ("" if raw else "final: ") + text
    assert "\ufffd" not in done.shown


@pytest.mark.parametrize("raw", [False, True])
def test_half_a_character_that_never_comes_is_shown_as_such(raw):
    tokens = tokens_of("go " + FAMILY)
    cut = next(count for count in range(1, len(tokens)) if ENCODING.decode(tokens[:count]).endswith("\ufffd"))
    reader = PlainReader(()) if raw else HarmonyReader(())
    done = Streamed(reader, tokens[:cut] if raw else [*tokens_of(FINAL), *tokens[:cut]], Finish.length)
    assert done.shown.removeprefix("final: ").startswith("go ")
    assert done.answer["final"].endswith("\ufffd")
    assert done.shown == done.text


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_any_tokens_at_all_are_shown_once_and_whole(raw, seed):
    """Random ids, control tokens and halves of characters among them: nothing is refused, taken back or repeated."""
    chance = random.Random(seed)
    special = list(range(199998, 200020))
    tokens = [chance.choice(special) if chance.random() < 0.15 else chance.randrange(201088) for _ in range(150)]
    reader = PlainReader(("zq", "the")) if raw else HarmonyReader(("zq", "the"))
    done = Streamed(reader, tokens, Finish.length)
    assert done.shown == done.text
    assert done.answer["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize("seed", range(10))
def test_plain_text_read_token_by_token_is_the_text_of_all_tokens(seed):
    """Half of them bytes of several-byte characters, whole or broken."""
    chance = random.Random(seed)
    tokens = [chance.choice((chance.randrange(199998), chance.randrange(128, 260))) for _ in range(60)]
    done = Streamed(PlainReader(()), tokens, Finish.length)
    assert done.answer["final"] == done.shown == ENCODING.decode(tokens)


def test_the_template_says_which_reader():
    for template, kind in (
        (Template.raw, PlainReader),
        (Template.harmony, HarmonyReader),
        (Template.tokenizer, HarmonyReader),
    ):
        assert type(reader_for(template, ("x",))) is kind
