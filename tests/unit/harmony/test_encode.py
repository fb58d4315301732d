"""What is encoded in parts has the tokens that openai-harmony gives the whole."""

from __future__ import annotations

import random

import openai_harmony as harmony
import pytest

from gptoss_dist.harmony import encode
from gptoss_dist.harmony.conversation import PromptOptions, render, to_conversation

LOOK = {"type": "function", "function": {"name": "look"}}
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
TURN = [
    {"role": "user", "content": "Look.", "name": "Zoë"},
    {"role": "assistant", "content": "I will.", "reasoning_content": "Hm.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c", "content": "seen"},
    {"role": "assistant", "content": "Seen.", "reasoning_content": "So."},
    {"role": "developer", "content": "Be brief."},
]
PROSE = (
    "It's 12345 o'clock,\n\n  he said (\"so\")…  They'LL go_on.\tüñï ½5 e\u0301, 語言，文字。ไทย 🦊!? a1b2 \x1c x/y\r\n"
    * 30
)
WORDS = [
    " ", "  ", "\n", "\r\n", "\t", "\x1c", "\u3000", "e\u0301", "\u0301", "It", "'s", "'LL", "’s", "12", "3456", "½",
    "²", "Ⅷ", "٣", "一", "Ω", "ß", "語", "，", "。", "ไทย", "🦊", "_", "-", "/", "!?", ".", ",", "(", "<|end|>",
    "ǅ", "ʰ", "X",
]  # fmt: skip


def whole(encoding, messages, options):
    """As the library renders it in one call."""
    return encoding.render_conversation_for_completion(
        to_conversation(messages, options),
        harmony.Role.ASSISTANT,
        config=harmony.RenderConversationConfig(auto_drop_analysis=False),
    )


@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_a_text_in_parts_has_the_tokens_of_the_whole(encoding, monkeypatch, size: int):
    monkeypatch.setattr(encode, "_LONG", size)
    chance = random.Random(size)
    texts = [PROSE, *("".join(chance.choices(WORDS, k=60)) for _ in range(150))]
    for text in texts:
        assert "".join(encode.parts(text)) == text
        assert encode.encode_text(text) == list(encoding.encode(text, disallowed_special=())), text
    assert len(list(encode.parts(PROSE))) > 50


def test_what_has_no_border_is_one_part(monkeypatch):
    monkeypatch.setattr(encode, "_LONG", 3)
    assert list(encode.parts("0123456789" * 5)) == ["0123456789" * 5]
    assert list(encode.parts("")) == [""]


@pytest.mark.parametrize("options", [PromptOptions(), PromptOptions(tools=(LOOK,))], ids=["bare", "tools"])
@pytest.mark.parametrize("leading", [[], ["Be kind."], [PROSE, "And brief."]], ids=["none", "short", "long"])
def test_long_messages_of_every_role_have_the_tokens_of_the_whole(encoding, monkeypatch, options, leading):
    said = [{"role": "system", "content": text} for text in leading]
    turn = [{**message, "content": PROSE} for message in TURN]
    messages = [*said, *turn[:3], *TURN, *turn[:3]]
    monkeypatch.setattr(encode, "_LONG", 100)
    conversation = to_conversation(messages, options)
    assert encode.encode_conversation(conversation, completion=True) == whole(encoding, messages, options)


@pytest.mark.parametrize("at_once", [2, 3, 5])
def test_a_long_conversation_is_encoded_in_batches_to_the_same_tokens(encoding, monkeypatch, at_once: int):
    messages = [{"role": "system", "content": "Be kind."}, *TURN, *TURN, *TURN[:3]]
    options = PromptOptions(tools=(LOOK,))
    calls = []
    rendered = type(encoding).render_conversation

    def counted(self, part, config=None):
        calls.append(len(part.messages))
        return rendered(self, part, config=config)

    expected = render(messages, options)
    monkeypatch.setattr(encode, "_MOST_MESSAGES", at_once)
    monkeypatch.setattr(type(encoding), "render_conversation", counted)
    assert render(messages, options) == expected
    assert len(calls) >= 3
    assert set(calls) == {at_once}
