"""Tensors of a checkpoint in the shape the model holds them, still unread: indexing reads only the rows asked for.

transformers' loader takes them as the values of a state dict; it looks at `get_shape`, `get_dtype` and indexes with
slices with step 1, or with `...` (transformers/distributed/sharding_utils.py, core_model_loading.py).

Shape legend: E experts, H hidden, I intermediate, G = I / 32 groups.
"""

from __future__ import annotations

from types import EllipsisType
from typing import Any

import torch

from gptoss_dist.kernels.mxfp4 import dequantize
from gptoss_dist.model.checkpoint import Checkpoint
from gptoss_dist.shapes import GROUP

_PAIR = 2 * GROUP

Index = tuple[slice, ...] | EllipsisType


class GroupedRows:
    """`[E, 2I, …]` of the file as `[E, G, 64, …]`."""

    def __init__(self, source: Any) -> None:
        """`source`: the file's slice, whose second dimension is a multiple of 64."""
        self._source = source

    def get_shape(self) -> list[int]:
        """Shape in the model."""
        experts, rows, *rest = self._source.get_shape()
        return [experts, rows // _PAIR, _PAIR, *rest]

    def get_dtype(self) -> str:
        """Format in the file, by safetensors' name."""
        return str(self._source.get_dtype())

    def __getitem__(self, index: Index) -> torch.Tensor:
        """Read the rows of the groups asked for."""
        experts, groups, pairs, *rest = _bounds(index, self.get_shape())
        rows = slice(groups.start * _PAIR, groups.stop * _PAIR)
        read: torch.Tensor = self._source[(experts, rows, *rest)]
        grouped = read.view(read.shape[0], read.shape[1] // _PAIR, _PAIR, *read.shape[2:])
        return grouped[:, :, pairs]


class Dequantised:
    """Blocks and scales as the bfloat16 parameter of transformers: `[E, rows, columns]` of the file, transposed."""

    def __init__(self, blocks: Any, scales: Any) -> None:
        """`blocks` [E, rows, groups, 16] and `scales` [E, rows, groups], the file's slices."""
        self._blocks, self._scales = blocks, scales

    def get_shape(self) -> list[int]:
        """[E, columns, rows]."""
        experts, rows, groups = self._scales.get_shape()
        return [experts, groups * GROUP, rows]

    def get_dtype(self) -> str:
        """bfloat16, by safetensors' name."""
        return "BF16"

    def __getitem__(self, index: Index) -> torch.Tensor:
        """Read the groups that cover the columns asked for, and unpack them."""
        experts, columns, rows = _bounds(index, self.get_shape())
        first, last = columns.start // GROUP, -(-columns.stop // GROUP)
        part = (experts, rows, slice(first, last))
        weight = dequantize(self._blocks[part], self._scales[part], torch.bfloat16)
        wanted = weight[:, :, columns.start - first * GROUP : columns.stop - first * GROUP]
        return wanted.transpose(1, 2).contiguous()


def packed_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state dict of a model with `PackedGptOssExperts`."""
    grouped = ("gate_up_proj_blocks", "gate_up_proj_scales", "gate_up_proj_bias")
    return {name: GroupedRows(one) if name.endswith(grouped) else one for name, one in checkpoint.slices.items()}


def dense_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state dict of transformers' own model: as the file has it, or unpacked while it is read."""
    state: dict[str, Any] = {}
    for name, one in checkpoint.slices.items():
        if name.endswith("_blocks"):
            base = name.removesuffix("_blocks")
            state[base] = Dequantised(one, checkpoint.slices[f"{base}_scales"])
        elif not name.endswith("_scales"):
            state[name] = one
    return state


def _bounds(index: Index, shape: list[int]) -> list[slice]:
    """One slice with plain start and stop for each dimension."""
    given = () if isinstance(index, EllipsisType) else index
    padded = [*given, *([slice(None)] * (len(shape) - len(given)))]
    return [slice(*one.indices(size)) for one, size in zip(padded, shape, strict=True)]
