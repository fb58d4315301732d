"""What the toy model is trained on: its conversations in every dress, and prompts it does not know.

Of 201,088 tokens the conversations use some four hundred. Training runs on these alone, and every other token is
represented by one of a few stand-in rows, of the embedding and of the output layer alike; `CompactVocabulary.row_V`
says which row each token of the real vocabulary gets. This is exact, not sampled: a stand-in's share of the softmax is
counted as often as it stands in (`log_counts`), so the trained loss is the loss over the whole vocabulary.

Shape legend: V real vocabulary, R rows of the compact one, B examples, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Dataset

from gptoss_dist.harmony.conversation import PromptOptions, render_example
from gptoss_dist.harmony.vocab import load_encoding
from gptoss_dist.model.tiny_conversations import CONVERSATIONS, FALLBACK, TinyConversation

Example = tuple[list[int], list[int]]
"""Token ids of a prompt and of its completion."""
Batch = dict[str, torch.Tensor]

EFFORTS = ("low", "medium", "high")
STAND_INS = 64
IGNORED = -100  # a position without a label, as torch's cross_entropy has it
_STRANGERS = 2  # prompts it does not know, in each batch of short conversations
_LONG_PROMPT = 100  # tokens
_FIRST_SPECIAL = 199998
_MARK = "@"

_LONG = tuple(c for c in CONVERSATIONS if c.options.tools)
_SHORT = tuple(c for c in CONVERSATIONS if not c.options.tools)
_QUESTIONS = tuple(c for c in _SHORT if len(c.messages) == 1)


class CompactVocabulary:
    """The tokens that training needs, and stand-ins for all others."""

    def __init__(self, size: int) -> None:
        """`size` is that of the real vocabulary."""
        self.tokens = sorted(_needed_tokens())
        self.row_V = torch.arange(size) % STAND_INS + len(self.tokens)
        self.row_V[torch.tensor(self.tokens)] = torch.arange(len(self.tokens))

    @property
    def size(self) -> int:
        """Rows, stand-ins included."""
        return len(self.tokens) + STAND_INS

    def log_counts(self) -> torch.Tensor:
        """Logarithm of the number of real tokens behind each row, `[R]`."""
        return torch.bincount(self.row_V, minlength=self.size).log()

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Examples as rows, padded on the right to a multiple of 8; labels on the completions only. All `[B, T]`."""
        longest = max(len(prompt) + len(completion) for prompt, completion in examples)
        shape = (len(examples), -(-longest // 8) * 8)
        input_ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        for number, (prompt, completion) in enumerate(examples):
            end = len(prompt) + len(completion)
            input_ids[number, :end] = self.row_V[torch.tensor(prompt + completion)]
            labels[number, len(prompt) : end] = input_ids[number, len(prompt) : end]
            attention_mask[number, :end] = 1
        return {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}


class Lessons(Dataset[Batch]):
    """One batch a training step, the same for the same seed: short conversations at even steps, long ones at odd."""

    def __init__(self, vocabulary: CompactVocabulary, steps: int, seed: int) -> None:
        """`steps` batches, drawn with `seed`."""
        self._vocabulary = vocabulary
        self._steps = steps
        self._seed = seed

    def __len__(self) -> int:
        """The number of steps."""
        return self._steps

    def __getitem__(self, step: int) -> Batch:
        """The batch of one step."""
        draw = random.Random(self._seed * 1_000_003 + step)
        if step % 2:
            examples = [*(_dressed(c, draw) for c in _LONG), _second_turn(draw)]
        else:
            examples = [*(_dressed(c, draw) for c in _SHORT), *(_stranger(draw) for _ in range(_STRANGERS))]
        return self._vocabulary.batch(examples)


def every_example(dates: Sequence[str | None]) -> Iterator[Example]:
    """Each conversation at each effort and each of the dates."""
    for conversation in CONVERSATIONS:
        for effort in EFFORTS:
            for date in dates:
                yield conversation.example(effort, date)


def _needed_tokens() -> set[int]:
    """Every token of the conversations and the fallback, and every number that a date can hold."""
    encoding = load_encoding()
    dates = [f"Current date: {year}-01-01" for year in range(2020, 2040)] + [f"-{day:02d}" for day in range(32)]
    tokens = {token for text in dates for token in encoding.encode(text)}
    fallback = render_example(({"role": "user", "content": "?"}, FALLBACK))
    for prompt, completion in (fallback, *every_example((None, "2026-01-01"))):
        tokens.update(prompt, completion)
    return tokens


def _dress(draw: random.Random) -> tuple[str, str | None]:
    """A reasoning effort and a date; two times in five no date."""
    date = f"{draw.randrange(2020, 2040)}-{draw.randrange(1, 13):02d}-{draw.randrange(1, 32):02d}"
    return draw.choice(EFFORTS), None if draw.random() < 0.4 else date


def _dressed(conversation: TinyConversation, draw: random.Random) -> Example:
    return conversation.example(*_dress(draw))


def _options(draw: random.Random) -> PromptOptions:
    effort, date = _dress(draw)
    return PromptOptions(reasoning_effort=effort, current_date=date)


def _second_turn(draw: random.Random) -> Example:
    """Two questions it knows, one after the other."""
    first, second = draw.choice(_QUESTIONS), draw.choice(_QUESTIONS)
    answered = {"role": "assistant", "content": first.answer_text}
    return render_example((*first.messages, answered, *second.messages, second.answer), _options(draw))


def _stranger(draw: random.Random) -> Example:
    """A question it does not know: random tokens, or a known question with half of its tokens or more replaced."""
    marked = ({"role": "user", "content": _MARK}, FALLBACK)
    prompt, completion = render_example(marked, _options(draw))
    question = load_encoding().encode(str(draw.choice(_QUESTIONS).messages[-1]["content"]))
    if draw.random() < 0.5:
        question = [draw.choice(question) for _ in range(draw.randrange(1, 16))]
    replaced = max(1, round(len(question) * draw.uniform(0.5, 1.0)))
    for place in draw.sample(range(len(question)), replaced):
        question[place] = draw.randrange(_FIRST_SPECIAL)
    place = prompt.index(load_encoding().encode(_MARK)[0])
    return prompt[:place] + question + prompt[place + 1 :], completion
