"""Careful rows at gpt-oss's vocabulary: a GPU chooses what a CPU chooses, and the host does not wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from careful_rows import draw_of, make_rows

from gptoss_dist.engine.choice import Chooser
from gptoss_dist.engine.logits import Logits
from gptoss_dist.engine.request import TokenLogprobs
from gptoss_dist.engine.sampler import Draw
from gptoss_dist.kernels import nucleus_reference, nucleus_triton
from gptoss_dist.runtime.mesh import Ranks

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

ALONE = Ranks(1, 1, 0, 0, None)
VOCABULARY, ROWS, STEPS = 201_088, 40, 4
BORDERLINE = 2
"""Of all tokens: exponentials differ in their last bit, which may move a token over the border of a nucleus."""


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
    places = [(step, row) for step in range(STEPS) for row in range(ROWS)]
    different = [(step, row) for step, row in places if found[step][row] != wanted[step][row]]
    assert len(different) <= BORDERLINE, different
    for step, (ours, theirs) in enumerate(zip(found_logprobs, wanted_logprobs, strict=True)):
        assert ours.keys() == theirs.keys()
        for name, one in ours.items():
            likeliest = [value for _, value in theirs[name].top]
            assert [value for _, value in one.top] == pytest.approx(likeliest, abs=1e-4)
            if (step, int(name)) not in different:
                assert one.chosen == pytest.approx(theirs[name].chosen, abs=1e-4)


@pytest.mark.parametrize("heat", [0.1, 1.0, 4.0])
def test_a_nucleus_is_what_sorting_finds(heat):
    """Flat, so that nearly all tokens of the vocabulary count, and steep; with the ties of logits in bfloat16."""
    probabilities_KV = (torch.randn(20, VOCABULARY, device="cuda") * heat).bfloat16().float().softmax(dim=1)
    rows_N = torch.randperm(20, device="cuda")[:18]
    top_p_N = (torch.rand(18, device="cuda").double() * nucleus_reference.WHOLE).long().clamp(min=1)
    wanted_KV = probabilities_KV.clone()
    nucleus_reference.keep_nucleus(wanted_KV, rows_N, top_p_N)
    nucleus_triton.keep_nucleus(probabilities_KV, rows_N, top_p_N)
    assert torch.equal(probabilities_KV, wanted_KV)
