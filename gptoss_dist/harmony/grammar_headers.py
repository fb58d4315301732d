"""The headers that a constrained turn may write, as a tree over bytes and control tokens.

A header is spelled in bytes between control tokens, and a text can be cut into tokens in many ways; a token is allowed
where its bytes lead along the tree. One tree holds every header of a constraint, so a place in it is one node.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from gptoss_dist.harmony.grammar_tokens import LONGEST_TOKEN, START, mask_of, token_ids, token_texts
from gptoss_dist.harmony.header import CHANNEL, CONSTRAIN, FIRST_CONTROL, MESSAGE

_JSON: tuple[bytes | int, ...] = (CONSTRAIN, b"json")
# What may follow channel and recipient: nothing, or the content type in the ways that the model writes it.
_CONTENT_TYPES: dict[str, tuple[tuple[bytes | int, ...], ...]] = {
    "text": ((),),
    "answer": ((), (b" ", *_JSON)),
    "json": ((), (b" ", *_JSON), _JSON, (b" json",)),
    "code": ((), (b" ", *_JSON), _JSON, (b" json",), (b" code",)),
}


@dataclass
class Node:
    """A place in a header. steps: where a byte (0 to 255) or a control token leads.

    message: index of the message that has been opened, at the end of a header.
    """

    steps: dict[int, Node] = field(default_factory=dict)
    message: int | None = None
    _allowed: list[int] | None = None

    def allowed(self) -> torch.Tensor:
        """The tokens that lead on from here, torch.bool [vocabulary], new."""
        if self._allowed is None:
            self._allowed = list(self._tokens())
        return mask_of(self._allowed)

    def after(self, token: int) -> Node | None:
        """Where `token` leads; None where it may not stand."""
        if token >= FIRST_CONTROL:
            return self.steps.get(token)
        node: Node | None = self
        for byte in token_texts().get(token, b"\xff"):  # no header holds that byte
            node = node.steps.get(byte) if node is not None else None
        return node

    def add(self, symbols: tuple[bytes | int, ...]) -> Node:
        """Grow the tree by `symbols`, texts and control tokens in turn; the node that they lead to."""
        node = self
        for symbol in symbols:
            for step in (symbol,) if isinstance(symbol, int) else symbol:
                node = node.steps.setdefault(step, Node())
        return node

    def _tokens(self) -> Iterator[int]:
        """Every control token, and every token whose bytes lie on a way from here."""
        yield from (step for step in self.steps if step >= FIRST_CONTROL)
        ids = token_ids()
        places = [(b"", self)]
        while places:
            spelled, node = places.pop()
            for byte, following in node.steps.items():
                if byte < FIRST_CONTROL and len(spelled) < LONGEST_TOKEN:
                    text = spelled + bytes([byte])
                    places.append((text, following))
                    if text in ids:
                        yield ids[text]


@dataclass(frozen=True)
class Headers:
    """The two places where a header begins: right after a prompt's `<|start|>assistant`, and after a message."""

    first: Node
    following: Node


def build(openings: list[tuple[str, str | None, str]]) -> Headers:
    """The tree of the messages given as (channel, recipient, content type, a key of _CONTENT_TYPES).

    The recipient stands after the channel or before it: the model writes both.
    """
    following = Node()
    first = following.add((START, b"assistant"))
    for index, (channel, recipient, content_type) in enumerate(openings):
        for words in _spellings(channel, recipient, content_type):
            end = first.add(words)
            end.message = index if end.message is None else end.message
    return Headers(first, following)


def _spellings(channel: str, recipient: str | None, content_type: str) -> Iterator[tuple[bytes | int, ...]]:
    name = channel.encode()
    to = f" to={recipient}".encode()
    for kind in _CONTENT_TYPES[content_type]:
        if recipient is None:
            yield (CHANNEL, name, *kind, MESSAGE)
        else:
            yield (CHANNEL, name + to, *kind, MESSAGE)
            yield (to, CHANNEL, name, *kind, MESSAGE)
