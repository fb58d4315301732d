from __future__ import annotations

import pytest

from gptoss_dist.harmony import grammar_headers
from gptoss_dist.harmony.grammar_headers import build
from gptoss_dist.harmony.grammar_tokens import VOCABULARY_SIZE, token_ids, tokenizer
from gptoss_dist.harmony.header import FIRST_CONTROL
from gptoss_dist.harmony.stream import Reader

OPENINGS = [
    ("analysis", None, "text"),
    ("commentary", None, "text"),
    ("final", None, "answer"),
    ("commentary", "functions.get", "json"),
    ("commentary", "functions.get_weather.v-2", "json"),
    ("commentary", "functions." + "x" * 128, "json"),
    ("analysis", "python", "code"),
    ("commentary", "browser.search", "code"),
]


@pytest.mark.parametrize("index", range(len(OPENINGS)))
def test_every_spelling_is_read_as_what_it_opens(encoding, index):
    channel, recipient, _ = OPENINGS[index]
    headers = build(OPENINGS)
    for words in grammar_headers._spellings(*OPENINGS[index]):
        tokens = [t for word in words for t in ([word] if isinstance(word, int) else encoding.encode(word.decode()))]
        node = headers.first
        for token in tokens:
            assert node.allowed()[token]
            node = node.after(token)
        assert node.message == index
        reader = Reader()
        deltas = [delta for token in (*tokens, *encoding.encode("{}")) for delta in reader.feed(token)]
        assert {(delta.channel, delta.recipient) for delta in deltas} == {(channel, recipient)}


def test_every_cut_into_tokens_is_allowed_and_no_other_text(encoding):
    node = build(OPENINGS).first.after(200005)
    allowed = node.allowed().nonzero().flatten().tolist()
    names = ("analysis to=", "commentary to=", "final ")
    expected = [i for i in range(FIRST_CONTROL) if any(n.startswith(encoding.decode([i])) for n in names)]
    assert allowed == expected


def test_padding_and_control_tokens_lead_nowhere():
    first = build(OPENINGS).first
    ways = [token for token in range(FIRST_CONTROL, VOCABULARY_SIZE) if first.after(token) is not None]
    assert ways == [200005]
    assert first.after(10**9) is None
    assert first.after(-1) is None


def test_the_vocabulary_is_the_one_of_the_encoding(encoding):
    ids = token_ids()
    assert len(ids) == FIRST_CONTROL
    assert all(bytes([byte]) in ids for byte in range(256))
    text = 'Zoë says: {"日本": [1, 2]}\n\t👩‍👩‍👧 <|end|>'
    assert tokenizer().tokenize_str(text) == encoding.encode(text, disallowed_special=())
    assert tokenizer().vocab_size == VOCABULARY_SIZE
