"""The keys of `engine`: cache and steps of the paged engine."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from gptoss_dist.schema.node import Node

FEWEST_STEP_TOKENS = 2048
"""Tokens of a step where none are asked for and memory is shared (a CPU) or scarce."""


@dataclass
class EngineConf(Node):
    """The paged engine: its cache and its steps. `cache_tokens`: null takes what is free; `graphs`: on GPUs only.

    `step_tokens`: null lets the engine choose by device and memory (`engine.size.chosen_step`). `mixed_step_tokens`: of
    a step that also decodes, so that those who wait for their next token wait less for the prompts of others.
    """

    name: str = MISSING
    page_size: int = 16
    cache_tokens: int | None = None
    memory_fraction: float = 0.9
    step_tokens: int | None = None
    mixed_step_tokens: int | None = None
    max_running: int = 64
    script: str | None = None
    graphs: bool = True

    @property
    def tokens_a_step(self) -> int:
        """`step_tokens`, or the fewest that an engine chooses: a step holds a token of every running request."""
        return max(FEWEST_STEP_TOKENS, self.max_running) if self.step_tokens is None else self.step_tokens
