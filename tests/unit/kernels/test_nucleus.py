"""The reference of the nucleus, against its definition in Python's own numbers."""

from __future__ import annotations

import pytest
import torch

from gptoss_dist.kernels.nucleus_reference import ROWS, WHOLE, keep_nucleus


def kept(row: list[float], top_p: int) -> list[float]:
    """Token after token, the likeliest first and of equal ones the lowest, until the sum reaches top-p."""
    found, total = [0.0] * len(row), 0
    for token in sorted(range(len(row)), key=lambda token: (-row[token], token)):
        if total >= top_p:
            break
        found[token] = row[token]
        total += int(row[token] * WHOLE)
    return found


@pytest.mark.parametrize("rows", [1, 5, 2 * ROWS + 3])
def test_it_keeps_what_the_definition_keeps(rows):
    generator = torch.Generator().manual_seed(rows)
    probabilities_KV = (torch.randint(0, 9, (rows + 2, 57), generator=generator) / 3).softmax(dim=1)
    rows_N = torch.randperm(rows + 2, generator=generator)[:rows]
    top_p_N = (torch.rand(rows, generator=generator).double() * WHOLE).long().clamp(min=1)
    found_KV = probabilities_KV.clone()
    keep_nucleus(found_KV, rows_N, top_p_N)
    wanted_KV = probabilities_KV.clone()
    for row, top_p in zip(rows_N.tolist(), top_p_N.tolist(), strict=True):
        wanted_KV[row] = torch.tensor(kept(probabilities_KV[row].tolist(), top_p))
    assert torch.equal(found_KV, wanted_KV)


def test_what_is_no_number_counts_as_nothing_and_stays():
    """What a NaN would be as a whole number differs from device to device."""
    probabilities_KV = torch.tensor([[0.2, torch.nan, 0.5, 0.3], [torch.nan] * 4])
    keep_nucleus(probabilities_KV, torch.arange(2), torch.tensor([WHOLE * 6 // 10] * 2))
    assert probabilities_KV[0].nan_to_num(9.0).tolist() == torch.tensor([0.0, 9.0, 0.5, 0.3]).tolist()
    assert probabilities_KV[1].isnan().all()
