"""Steps with prompts, played from CUDA graphs as long as the host's launches would take longer than the device.

A step of 36 layers is some 400 launches, 7 to 12 ms of the host: with several ranks as long as a prompt of 1,024 tokens
takes the device. A graph has fixed shapes, so there is one for each of some numbers of tokens, with and without
decoding sequences. Larger steps are launched kernel by kernel; there the device is what takes the time.

    2 sequences decode, chunks of 70 and 9 tokens ──► buffers ──► played for `running` + 128 rows ──► the tokens of 4

Shape legend: R rows that choose a token.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gptoss_dist.engine.decode_buffers import DecodeOutput
from gptoss_dist.engine.graphs import Player, next_up
from gptoss_dist.engine.prompt_buffers import PromptBuffers
from gptoss_dist.engine.sampler import Draw
from gptoss_dist.engine.step_input import StepInput

_SIZES = (*range(64, 512, 64), *range(512, 1025, 128))
"""Tokens of chunks: padding is paid by the device, graphs by the start."""


def prompt_buckets(step_tokens: int) -> tuple[int, ...]:
    """Tokens of chunks for which there are graphs; none beyond what a step may take in."""
    return tuple(size for size in _SIZES if size <= step_tokens)


class PromptSteps:
    """Every bucket's step, prepared once and then played."""

    def __init__(
        self,
        compute: Callable[[StepInput, Draw, DecodeOutput], None],
        buffers: PromptBuffers,
        output: DecodeOutput,
        player: Player,
        buckets: tuple[int, ...],
    ) -> None:
        """Prepare `compute`, which writes to `output`, for every bucket with and without decoding sequences."""
        self._compute, self._buffers, self._output, self._player = compute, buffers, output, player
        self._buckets = buckets
        started = time.perf_counter()
        for tokens in reversed(buckets):
            for decoding in (buffers.running, 0):
                self._prepare(decoding, tokens)
        self._seconds = time.perf_counter() - started

    @property
    def summary(self) -> str:
        """What was prepared, and in what time."""
        return f"{2 * len(self._buckets)} of prompts of up to {self._buckets[-1]} tokens in {self._seconds:.1f} s"

    def takes(self, given: StepInput) -> bool:
        """Whether a step with chunks can be played."""
        return len(given.ids_T) - given.decoding <= self._buckets[-1]

    def run(self, given: StepInput, draw: Draw) -> DecodeOutput:
        """Logits and tokens of the rows that choose one; all decoding sequences do."""
        assert given.sampled_R is not None
        tokens = next_up(self._buckets, len(given.ids_T) - given.decoding)
        decoding = self._buffers.running if given.decoding else 0
        self._buffers.fill(given, draw, decoding, tokens)
        self._player.play(("prompts", decoding, tokens))
        return self._output.narrow(len(given.sampled_R))

    def _prepare(self, decoding: int, tokens: int) -> None:
        step, draw = self._buffers.views(decoding, tokens)
        self._player.prepare(("prompts", decoding, tokens), lambda: self._compute(step, draw, self._output))
