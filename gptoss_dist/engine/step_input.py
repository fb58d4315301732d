"""What goes through the model in one step: its tokens, and where their keys and values are kept.

Shape legend: T tokens of the step, of which the first S are decoding sequences (one token each) and the others belong
to C chunks of prompts; N pages a table; R rows that sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Places:
    """Where the step's tokens are kept, in the layers of one kind."""

    slot_T: torch.Tensor
    """int64: page × page size + place in the page; -1: nowhere (padding)."""
    table_SN: torch.Tensor
    """int32: the pages of each decoding sequence."""
    table_CN: torch.Tensor
    """int32: those of each chunk."""


@dataclass(frozen=True)
class Chunks:
    """The part of the step that is not decoding: consecutive tokens of some sequences."""

    first_C: torch.Tensor
    """int32: row of its first token, counted from the first row after the decoding ones."""
    count_C: torch.Tensor
    """int32: tokens."""
    start_C: torch.Tensor
    """int32: position of its first token."""
    longest: int
    """The largest count, or more."""
    padded: bool = False
    """Whether rows may follow that belong to no chunk: they see nothing."""


@dataclass(frozen=True)
class StepInput:
    """What goes through the model in one step."""

    ids_T: torch.Tensor
    """int64."""
    position_T: torch.Tensor
    """int32: the place of each token in its sequence, from 0. A padding row repeats another's, or is at -1 and sees
    nothing; its slots are -1."""
    decoding: int
    """S, the number of decoding sequences, which come first."""
    full: Places
    sliding: Places
    chunks: Chunks | None
    sampled_R: torch.Tensor | None
    """Rows after which a token is chosen; None: all."""
