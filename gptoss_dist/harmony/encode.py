"""Conversations and texts as tokens, in calls of openai-harmony that are each short: none lets another thread run.

A long text is cut where two of the tokenizer's own pieces meet, so that the tokens of its parts are those of the whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from openai_harmony import (  # type: ignore[import-untyped]
    Conversation,
    DeveloperContent,
    HarmonyError,
    Message,
    RenderConversationConfig,
    Role,
    TextContent,
)

from gptoss_dist.errors import PromptError
from gptoss_dist.harmony.checks import check_together
from gptoss_dist.harmony.header import MESSAGE
from gptoss_dist.harmony.vocab import load_encoding

_KEEP_ALL = RenderConversationConfig(auto_drop_analysis=False)
_LONG = 32 * 1024
"""Characters that are encoded in one call, some 5 ms."""
_MOST_MESSAGES = 256
"""Of one call, some 30 ms."""
_HEAD = 2
"""The first messages, system and developer, go together: the one says what the other offers."""
_BORDER = re.compile(
    r"(?<=[^\W_])(?=[\s!\"#$%&()*+,./:;<=>?@\[\\\]^_`{|}~、。，．！？：；「」『』（）-])|(?<=[A-Za-z])(?=[0-9])"
)
"""After a letter or digit no piece goes on with one of these, nor does one that begins there look behind itself."""


def encode_text(text: str) -> list[int]:
    """Token ids of a text; what spells a control token is text too."""
    encoding = load_encoding()
    return [token for part in parts(text) for token in encoding.encode(part, disallowed_special=())]


def encode_conversation(conversation: Conversation, completion: bool = False) -> list[int]:
    """Token ids of a conversation; with `completion` the header follows that the assistant completes.

    Raises PromptError.
    """
    messages = [_with_text_first(message) for message in conversation.messages]
    texts = [list(_texts(message.to_dict())) for message in messages]
    check_together(text for each in texts for text in each)
    long = {index: message.content[0].text for index, message in enumerate(messages) if _is_long(message)}
    sizes = [0 if index in long else sum(map(len, each)) for index, each in enumerate(texts)]
    short = [_without_text(message) if index in long else message for index, message in enumerate(messages)]
    try:
        tokens = _render(short, sizes, completion)
    except (HarmonyError, ValueError, RecursionError) as error:  # ValueError: its JSON reader's depth limit
        raise PromptError(f"the conversation cannot be rendered: {error}.") from error
    return _put_in(long, tokens) if long else tokens


def parts(text: str) -> Iterator[str]:
    """A text in parts of little more than `_LONG` characters, where it has borders."""
    begin = 0
    while len(text) - begin > _LONG and (border := _BORDER.search(text, begin + _LONG)):
        yield text[begin : border.start()]
        begin = border.start()
    yield text[begin:]


def _render(messages: Sequence[Message], sizes: Sequence[int], completion: bool) -> list[int]:
    """Tokens of messages of such sizes, in characters."""
    encoding = load_encoding()
    tokens: list[int] = []
    for begin, end in pairwise(_batches(sizes)):
        batch = Conversation.from_messages(messages[begin:end])
        if completion and end == len(messages):
            tokens += encoding.render_conversation_for_completion(batch, Role.ASSISTANT, config=_KEEP_ALL)
        else:
            tokens += encoding.render_conversation(batch, config=_KEEP_ALL)
    return tokens


def _batches(sizes: Sequence[int]) -> list[int]:
    """Where the batches begin that are rendered in one call each, and where the last one ends."""
    places, together = [0], 0
    for index, size in enumerate(sizes):
        together += size
        if index >= _HEAD and (together > _LONG or index - places[-1] >= _MOST_MESSAGES):
            places.append(index)
            together = size
    return [*places, len(sizes)]


def _put_in(texts: Mapping[int, str], tokens: list[int]) -> list[int]:
    """The tokens with those of texts where the content begins of the messages of these indexes."""
    begins = [place + 1 for place, token in enumerate(tokens) if token == MESSAGE]
    whole, done = [], 0
    for index, text in texts.items():
        whole += tokens[done : begins[index]]
        whole += encode_text(text)
        done = begins[index]
    return whole + tokens[done:]


def _with_text_first(message: Message) -> Message:
    """Long instructions of a developer message as the text that they are rendered to."""
    content, *rest = message.content
    if not isinstance(content, DeveloperContent) or len(content.instructions or "") <= _LONG:
        return message
    text = f"# Instructions\n\n{content.instructions}"
    if not content.tools:
        return _with_content(message, [TextContent(text=text), *rest])
    return _with_content(message, [TextContent(text=f"{text}\n\n"), DeveloperContent(tools=content.tools), *rest])


def _is_long(message: Message) -> bool:
    first = message.content[0]
    return isinstance(first, TextContent) and len(first.text) > _LONG


def _without_text(message: Message) -> Message:
    return _with_content(message, [TextContent(text=""), *message.content[1:]])


def _with_content(message: Message, content: list[Any]) -> Message:
    return message.model_copy(update={"content": content})


def _texts(content: Any) -> Iterator[str]:
    """Every text within a JSON value."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for one in content.values() if isinstance(content, dict) else content:
            yield from _texts(one)
