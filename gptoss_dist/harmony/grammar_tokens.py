"""The harmony vocabulary as bytes, for masks over it: which token spells what, and llguidance's tokenizer.

Everything is made of the vocabulary file that gptoss_dist.harmony.vocab finds, without a network, once a process.
Masks are torch.bool [vocabulary], True where a token is allowed. Ids from FIRST_CONTROL on are control tokens or rows
of padding in the model's embedding.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterable

import torch
from llguidance import LLTokenizer, TokenizerWrapper

from gptoss_dist.errors import VocabularyError
from gptoss_dist.harmony.header import FIRST_CONTROL
from gptoss_dist.harmony.vocab import find_vocabulary, load_encoding

VOCABULARY_SIZE = 201_088
LONGEST_TOKEN = 128  # bytes
RETURN, START, END, CALL = 200002, 200006, 200007, 200012


class _HarmonyTokenizer:
    """What llguidance's TokenizerWrapper asks of a tokenizer; the names of control tokens play no role here."""

    eos_token_id = RETURN
    bos_token_id = None

    def __init__(self) -> None:
        self._encoding = load_encoding()
        self.special_token_ids = list(range(FIRST_CONTROL, VOCABULARY_SIZE))
        self.tokens = [f"<|{token}|>".encode() for token in range(VOCABULARY_SIZE)]
        for token, text in token_texts().items():
            self.tokens[token] = text

    def __call__(self, text: str) -> list[int]:
        """Token ids of `text`; a control token's name is plain text. Raises TypeError for bytes."""
        if not isinstance(text, str):  # how TokenizerWrapper finds out what it may pass
            raise TypeError("expected str")
        return list(self._encoding.encode(text, disallowed_special=()))


@functools.cache
def token_ids() -> dict[bytes, int]:
    """Bytes ─► id of every ordinary token; each single byte is among them. Raises VocabularyError."""
    load_encoding()  # fetches the file where that is allowed
    found = find_vocabulary()
    if found is None:
        raise VocabularyError("the harmony vocabulary vanished after it was loaded; run `gptoss prefetch vocab`.")
    pairs = (line.split() for line in found.path.read_bytes().splitlines())
    return {base64.b64decode(text): int(rank) for text, rank in pairs}


@functools.cache
def token_texts() -> dict[int, bytes]:
    """Id ─► bytes of every ordinary token. Raises VocabularyError."""
    return {token: text for text, token in token_ids().items()}


@functools.cache
def tokenizer() -> LLTokenizer:
    """llguidance's view of the vocabulary; its end of text is `<|return|>`. Raises VocabularyError."""
    wrapper = TokenizerWrapper(_HarmonyTokenizer())
    slices = LLTokenizer.json_slices()
    return LLTokenizer(wrapper, n_vocab=VOCABULARY_SIZE, eos_token=RETURN, slices=slices)


def mask_of(tokens: Iterable[int]) -> torch.Tensor:
    """A new mask that allows `tokens` only."""
    mask = torch.zeros(VOCABULARY_SIZE, dtype=torch.bool)
    mask[torch.tensor(list(tokens), dtype=torch.int64)] = True
    return mask


@functools.cache
def text_mask(ends: tuple[int, ...]) -> torch.Tensor:
    """Any text, or one of the control tokens `ends`. Shared: never to be written to."""
    mask = mask_of(ends)
    mask[:FIRST_CONTROL] = True
    return mask
