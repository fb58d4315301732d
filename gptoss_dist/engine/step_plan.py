"""One step while it is planned: its chunks, and how many more tokens it takes. Whose they are is decided elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from gptoss_dist.engine.sequence import Sequence


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive tokens of one sequence that go through the model together."""

    sequence: Sequence
    start: int
    count: int
    samples: bool
    """Whether it ends with the last token of the sequence, so that the next one is chosen after it."""

    @property
    def end(self) -> int:
        """The position after the last of its tokens."""
        return self.start + self.count


class StepPlan:
    """Chunks of different sequences, in the order in which they were added."""

    def __init__(self, step_tokens: int, mixed_step_tokens: int) -> None:
        """An empty plan of up to `step_tokens` tokens, or up to `mixed_step_tokens` of decodes and prompts together."""
        self.chunks: list[Chunk] = []
        self.left = step_tokens
        """Tokens that may still be added."""
        self._mixed_step_tokens = mixed_step_tokens

    def add(self, sequence: Sequence, count: int) -> Chunk:
        """The next `count` tokens of a sequence after those in the cache, at most `left`."""
        chunk = Chunk(sequence, sequence.computed, count, samples=count == sequence.remaining)
        self.chunks.append(chunk)
        self.left -= count
        return chunk

    def hold_back(self) -> None:
        """What is added from here on are prompts: beside sequences that decode they get less."""
        if any(chunk.samples and chunk.count == 1 for chunk in self.chunks):
            self.left = min(self.left, self._mixed_step_tokens - sum(chunk.count for chunk in self.chunks))

    def end_of(self, sequence: Sequence) -> int:
        """Tokens of the sequence that are in the cache after this step."""
        return next((chunk.end for chunk in self.chunks if chunk.sequence is sequence), sequence.computed)
