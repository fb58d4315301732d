from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from gptoss_dist.model.checkpoint import open_checkpoint
from gptoss_dist.model.views import Dequantised, GroupedRows, dense_state, packed_state
from gptoss_dist.shapes import GROUP

EXPERTS, ROWS, GROUPS = 3, 192, 5


class CountedSlice:
    """A tensor read like a safetensors slice, which remembers how many bytes were asked of it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self.bytes_read = 0

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        return {torch.uint8: "U8", torch.bfloat16: "BF16"}[self._tensor.dtype]

    def __getitem__(self, index: Any) -> torch.Tensor:
        part = self._tensor[index].clone()
        self.bytes_read += part.nbytes
        return part


def random_bytes(*shape: int, low: int = 0, high: int = 256) -> torch.Tensor:
    return torch.randint(low, high, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def blocks() -> CountedSlice:
    return CountedSlice(random_bytes(EXPERTS, ROWS, GROUPS, GROUP // 2))


@pytest.fixture
def scales() -> CountedSlice:
    return CountedSlice(random_bytes(EXPERTS, ROWS, GROUPS, low=110, high=140))


def some_indices(shape: list[int], count: int = 60) -> list[tuple[slice, ...]]:
    """Ranges within `shape`, some of them empty or whole, some indices shorter than the shape."""
    chance = random.Random(2)
    found = []
    for _ in range(count):
        bounds = [sorted(chance.choices(range(size + 1), k=2)) for size in shape]
        index = [slice(None) if chance.random() < 0.2 else slice(*pair) for pair in bounds]
        found.append(tuple(index[: chance.randint(1, len(shape))]))
    return found


@pytest.mark.parametrize("rest", [(GROUPS, 16), (GROUPS,), ()], ids=["blocks", "scales", "bias"])
def test_grouped_rows_are_the_rows_in_order(rest: tuple[int, ...]):
    source = random_bytes(EXPERTS, ROWS, *rest)
    view, whole = GroupedRows(CountedSlice(source)), source.view(EXPERTS, ROWS // 64, 64, *rest)
    assert view.get_shape() == list(whole.shape)
    assert view.get_dtype() == "U8"
    assert torch.equal(view[...], whole)
    for index in some_indices(view.get_shape()):
        assert torch.equal(view[index], whole[index])


def test_a_dequantised_view_is_what_transformers_unpacks(blocks: CountedSlice, scales: CountedSlice):
    view = Dequantised(blocks, scales)
    whole = convert_moe_packed_tensors(blocks[...], scales[...], dtype=torch.bfloat16)
    assert view.get_shape() == list(whole.shape) == [EXPERTS, GROUPS * GROUP, ROWS]
    assert view.get_dtype() == "BF16"
    assert torch.equal(view[...], whole)
    for index in some_indices(view.get_shape()):
        assert torch.equal(view[index], whole[index])


def test_grouped_rows_reads_only_what_is_asked_for(blocks: CountedSlice):
    part = GroupedRows(blocks)[1:3, 1:2]
    assert blocks.bytes_read == part.nbytes == 2 * 64 * GROUPS * 16


def test_a_dequantised_view_reads_only_the_groups_that_cover_the_columns(blocks: CountedSlice, scales: CountedSlice):
    part = Dequantised(blocks, scales)[0:1, 33:97, 10:20]  # columns of groups 1, 2 and 3
    assert part.shape == (1, 64, 10)
    assert (blocks.bytes_read, scales.bytes_read) == (10 * 3 * 16, 10 * 3)
    assert part.is_contiguous()


def test_the_slices_of_all_ranks_are_the_whole(blocks: CountedSlice, scales: CountedSlice):
    for view, dim in ((GroupedRows(blocks), 1), (Dequantised(blocks, scales), 1), (Dequantised(blocks, scales), 2)):
        size = view.get_shape()[dim]
        steps = range(0, size + 1, max(1, size // 3))
        parts = [view[(slice(None),) * dim + (slice(start, start + steps.step),)] for start in steps]
        assert torch.equal(torch.cat(parts, dim=dim), view[...])


def test_the_same_from_a_file(tmp_path: Path):
    source = random_bytes(EXPERTS, ROWS, GROUPS, 16)
    save_file({"blocks": source}, tmp_path / "one.safetensors")
    view = GroupedRows(safe_open(tmp_path / "one.safetensors", framework="pt").get_slice("blocks"))
    whole = source.view(EXPERTS, -1, 64, GROUPS, 16)
    for index in some_indices(view.get_shape()):
        assert torch.equal(view[index], whole[index])


def test_states_hold_every_tensor_in_the_model_s_shape(make_checkpoint):
    checkpoint = open_checkpoint(make_checkpoint())
    packed, dense = packed_state(checkpoint), dense_state(checkpoint)
    assert set(packed) == {spec.name for spec in SMALL.tensors()}
    assert {name: tuple(one.get_shape()) for name, one in dense.items()} == {
        spec.name: spec.shape for spec in SMALL.tensors(dense=True)
    }
    groups = SMALL.intermediate // GROUP
    name = "model.layers.2.mlp.experts.gate_up_proj"
    assert packed[f"{name}_blocks"].get_shape() == [SMALL.experts, groups, 64, SMALL.hidden // GROUP, 16]
    assert packed[f"{name}_bias"].get_shape() == [SMALL.experts, groups, 64]
    assert packed["model.layers.2.mlp.experts.down_proj_bias"].get_shape() == [SMALL.experts, SMALL.hidden]


def test_a_dense_checkpoint_is_read_as_it_is(make_checkpoint):
    checkpoint = open_checkpoint(make_checkpoint(dense=True))
    assert dense_state(checkpoint) == checkpoint.slices
