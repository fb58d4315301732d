"""Careful rows at gpt-oss's vocabulary: a GPU chooses what a CPU chooses, and the host does not wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from careful_rows import draw_of, make_rows
from truncation_cases import cuts_for, kinds

from gptoss_dist.engine.choice import Chooser
from gptoss_dist.engine.logits import Logits
from gptoss_dist.engine.request import TokenLogprobs
from gptoss_dist.engine.sampler import Draw
from gptoss_dist.kernels import truncation_reference, truncation_triton
from gptoss_dist.runtime.mesh import Ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.filterwarnings("default:Synchronization debug mode is a prototype feature"),
]

ALONE = Ranks(1, 1, 0, 0, None)
VOCABULARY, ROWS, STEPS = 201_088, 40, 4


def chosen_on(device: torch.device) -> tuple[list[list[int | None]], list[dict[str, TokenLogprobs]]]:
    """Tokens and log probabilities, step after step; what was said is known to the device only."""
    chooser, rows, generator = Chooser(ALONE, device), make_rows(ROWS), torch.Generator().manual_seed(5)
    first = draw_of(rows)
    tokens, logprobs = [], []
    for step in range(STEPS):
        columns_RC = (torch.randn(ROWS, VOCABULARY, generator=generator) * 2).bfloat16().to(device)
        draw = Draw(*(part.to(device) for part in first._replace(position_R=first.position_R + step)))
        with no_waits(device if step else None):  # the first one compiles
            chosen = chooser.choose(rows, Logits(columns_RC), draw)
        step_tokens, step_logprobs = chosen.wait(f"step {step}")
        tokens.append(step_tokens)
        logprobs.append(step_logprobs)
    return tokens, logprobs


@contextmanager
def no_waits(device: torch.device | None) -> Iterator[None]:
    """Where the host waits for this GPU there is an error."""
    if device is None or device.type != "cuda":
        yield
        return
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_gpu_chooses_what_a_cpu_chooses_and_the_host_does_not_wait():
    wanted, wanted_logprobs = chosen_on(torch.device("cpu"))
    found, found_logprobs = chosen_on(torch.device("cuda", 0))
    assert found == wanted
    for ours, theirs in zip(found_logprobs, wanted_logprobs, strict=True):
        assert ours.keys() == theirs.keys()
        for name, one in ours.items():
            likeliest = [value for _, value in theirs[name].top]
            assert [value for _, value in one.top] == pytest.approx(likeliest, abs=1e-4)
            assert one.chosen == pytest.approx(theirs[name].chosen, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("heat", [0.0, 0.1, 2.0, 8.0])
def test_the_same_tokens_stay_as_on_a_cpu(heat, dtype):
    """To the last one: flat rows, where nearly all tokens of the vocabulary count, and steep ones, with ties."""
    asked = kinds(VOCABULARY)
    logits_RV = (torch.randn(20, VOCABULARY, generator=torch.Generator().manual_seed(3)) * heat).to(dtype)
    logits_RV[1:, ::7] = -torch.inf
    rows_L = torch.randperm(20)[: len(asked)]
    wanted_LV = truncation_reference.truncate(logits_RV, rows_L, cuts_for(asked, VOCABULARY))
    given = (logits_RV.cuda(), rows_L.cuda(), cuts_for(asked, VOCABULARY, "cuda"))
    found_LV = truncation_triton.truncate(*given).cpu()
    different = [one for one, found, wanted in zip(asked, found_LV, wanted_LV, strict=True) if not found.equal(wanted)]
    assert not different
