"""What the attention kernels refuse before they read it."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is published for Linux only")

from gptoss_dist.kernels import attention_tiles


@pytest.mark.parametrize(
    ("query", "page_size", "table", "said"),
    [
        (torch.zeros(1, 15, 64), 16, torch.int32, "multiple of 2 heads"),
        (torch.zeros(1, 16, 32), 16, torch.int32, "of size 64"),
        (torch.zeros(64, 16, 1).transpose(0, 2), 16, torch.int32, "contiguous"),
        (torch.zeros(1, 16, 64), 12, torch.int32, "powers of two"),
        (torch.zeros(1, 16, 64), 16, torch.int64, "int32"),
    ],
)
def test_what_the_kernels_would_read_wrongly_is_refused(query, page_size, table, said):
    cache = torch.zeros(2, 3, page_size, 2, 64)
    with pytest.raises(ValueError, match=said):
        attention_tiles.check_cache(query, *cache, torch.zeros(1, 4, dtype=table))


def test_keys_and_values_of_different_strides_are_refused():
    key, value = torch.zeros(3, 16, 2, 64), torch.zeros(3, 2, 16, 64).transpose(1, 2)
    with pytest.raises(ValueError, match="equal strides"):
        attention_tiles.check_cache(torch.zeros(1, 16, 64), key, value, torch.zeros(1, 4, dtype=torch.int32))


def test_a_cpu_is_told_what_is_missing():
    assert attention_tiles.unavailable(torch.device("cpu")) == "the built-in Triton attention needs a GPU"
