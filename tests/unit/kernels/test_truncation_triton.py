from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

import torch
from interpreted import interpreted
from kernel_launches import Launch, recorded
from truncation_cases import Asked, cuts_for, kinds

from gptoss_dist.kernels import dependent_launch, truncation_reference, truncation_triton


def both(logits_RV: torch.Tensor, rows: list[int], asked: list[Asked]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernels and the reference leave; what is no number as 77."""
    given = (logits_RV, torch.tensor(rows, dtype=torch.int64), cuts_for(asked, logits_RV.shape[1]))
    found_LV, wanted_LV = truncation_triton.truncate(*given), truncation_reference.truncate(*given)
    return found_LV.nan_to_num_(nan=77.0), wanted_LV.nan_to_num_(nan=77.0)


@interpreted
def test_the_same_tokens_stay_whatever_the_distribution():
    """Flat and steep ones, with ties and without, with tokens that cannot be chosen, over one block and many."""
    truncation_triton.COLUMNS, truncation_triton.CHUNK = 64, 64
    cases = ((1, 1.0, 0, 3), (64, 2.0, 1, 3), (130, 2.0, 0, 1), (130, 0.01, 0, 2), (130, 30.0, 1, 2))
    for columns, heat, first, step in cases:
        asked = kinds(columns)[first::step]
        rows = torch.randperm(len(asked) + 2)[: len(asked)].tolist()
        logits_RV = torch.randn(len(asked) + 2, columns) * heat
        logits_RV[::2] = logits_RV[::2].round()
        logits_RV[1:, ::5] = -torch.inf
        assert torch.equal(*both(logits_RV, rows, asked))


@interpreted
def test_logits_as_the_model_computes_them():
    truncation_triton.COLUMNS, truncation_triton.CHUNK = 64, 32
    asked = kinds(100)
    logits_RV = (torch.randn(len(asked), 100) * 3).half()
    found_LV, wanted_LV = both(logits_RV, list(range(len(asked))), asked)
    assert found_LV.dtype == torch.float16
    assert torch.equal(found_LV, wanted_LV)


@interpreted
def test_of_equal_tokens_the_lower_ids_stay_and_a_sum_that_is_reached_ends_it():
    truncation_triton.COLUMNS, truncation_triton.CHUNK = 8, 4
    shares = (1e-9, 1 / 32, 1 / 32 + 1e-9, 0.5, 1 - 1e-9)
    asked = [*(Asked(top_p=share) for share in shares), Asked(top_k=1)]
    found_LV, _ = both(torch.zeros(6, 32), list(range(6)), asked)
    assert (found_LV == 0).sum(dim=1).tolist() == [1, 1, 2, 16, 32, 32]
    assert all(row[: int((row == 0).sum())].eq(0).all() for row in found_LV)


@interpreted
def test_rows_of_nothing_of_one_token_and_with_what_is_no_number():
    truncation_triton.COLUMNS, truncation_triton.CHUNK = 16, 4
    logits_RV = torch.full((5, 20), -torch.inf)
    logits_RV[0, 13] = 1.0
    logits_RV[1], logits_RV[1, ::2] = torch.nan, -torch.nan
    logits_RV[2] = torch.randn(20)
    logits_RV[2, 4] = torch.nan
    logits_RV[3, 5], logits_RV[3, 6:8] = 3.0, torch.inf
    for kind in (Asked(), Asked(top_p=0.9), Asked(top_k=2), Asked(top_k=20, top_p=0.5), Asked(min_p=0.1)):
        found_LV, wanted_LV = both(logits_RV, [0, 1, 2, 3, 4], [kind] * 5)
        assert torch.equal(found_LV, wanted_LV)
        assert found_LV[2, 4] == 77


@interpreted
def test_no_row_asks():
    found_LV, _ = both(torch.randn(2, 4), [], [])
    assert found_LV.shape == (0, 4)


def launched(monkeypatch, rows: int, dtype: torch.dtype, capability: int) -> list[Launch]:
    """What `rows` rows of gpt-oss's vocabulary launch on such a GPU."""
    early = {"DEPENDENT": True, "launch_pdl": True} if capability >= 90 else {"DEPENDENT": False}
    monkeypatch.setattr(dependent_launch, "options", lambda device: early)
    logits_RV = torch.empty(rows + 3, 201_088, dtype=dtype, device="meta")
    with recorded(monkeypatch) as launches:
        rows_L = torch.empty(rows, dtype=torch.int64, device="meta")
        truncation_triton.truncate(logits_RV, rows_L, cuts_for([Asked()] * rows, 201_088, "meta"))
    return launches


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("capability", [80, 90])
def test_six_launches_compile_without_spills(dtype, capability, monkeypatch):
    launches = launched(monkeypatch, 64, dtype, capability)
    assert len(launches) == 6
    for launch in launches:
        made = launch.compile(capability)
        assert made.spilled_bytes == 0
        # As the reference rounds: products are not fused with sums, but where numbers are divided (FFMA.FTZ).
        assert "fma.rn.f32" not in made.ptx
        assert "FFMA " not in made.disassembly()


def test_the_kernels_of_one_row_are_those_of_many(monkeypatch):
    assert launched(monkeypatch, 1, torch.bfloat16, 90) == launched(monkeypatch, 64, torch.bfloat16, 90)
