"""The step over the fused kernels' own code, in Triton's interpreter, float32: the model's own logits."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch
from conftest import SMALL, write_lively
from interpreted import interpreted
from step_checks import Paged, random_ids, run_script

from gptoss_dist.config import compose_run
from gptoss_dist.engine.decode_buffers import DecodeBuffers, DecodeInput, DecodeOutput
from gptoss_dist.engine.graphs import DecodeSteps, NoGraphs
from gptoss_dist.engine.step import Step
from gptoss_dist.engine.take_weights import take_weights
from gptoss_dist.kernels import experts_triton
from gptoss_dist.kernels.all_reduce_reference import LocalReducer
from gptoss_dist.kernels.step_kernels import StepKernels, step_kernels
from gptoss_dist.session import Session, open_session

LENGTHS = (20, 6)
SCRIPT = [[(0, 0, 18)], [(0, 18, 1), (1, 0, 5)], [(0, 19, 1), (1, 5, 1)]]
"""Over a window of 16 and pages of 4: a chunk, a chunk beside a decoding sequence, two decoding ones."""
SHAPE = dataclasses.replace(SMALL, layers=2, intermediate=64, experts=4, heads=4, kv_heads=2, vocab=96)


def open_checkpoint() -> Session:
    folder = write_lively(Path(tempfile.mkdtemp()) / "model", SHAPE)
    words = ["model=gpt_oss_20b", f"model.path={folder}", "plan=single", "cluster.device=cpu", "model.dtype=float32"]
    return open_session(compose_run(words), None)


@interpreted
def test_every_kernel_together_gives_the_models_own_logits():
    compare(step_kernels("triton"))


@interpreted
def test_so_do_those_that_do_the_work_of_one():
    compare(dataclasses.replace(step_kernels("triton"), begin_attention=None, end_attention=None))


def compare(kernels: StepKernels) -> None:
    session = open_checkpoint()
    ids = random_ids(LENGTHS, SHAPE.vocab, seed=1)
    with torch.no_grad():
        wanted = [session.loaded.model(input_ids=one[None]).logits[0] for one in ids]
    for layer in session.loaded.model.model.layers:
        experts_triton.install(layer.mlp.experts)
    weights = take_weights(session.loaded, 0)
    assert all(layer.expert_rows is not None for layer in weights.layers)
    paged = Paged(ids, 4, weights.window)
    step = Step(weights, kernels, paged.cache(weights), LocalReducer(kernels.add_norm, kernels.add_routes_norm))
    found = run_script(step, paged, SCRIPT, weights.device)
    for one, logits in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, logits, rtol=0, atol=1e-4)
    last = paged.step_input([(0, LENGTHS[0] - 1, 1), (1, LENGTHS[1] - 1, 1)], weights.device)
    full, sliding, zeros = last.full, last.sliding, torch.zeros(2, dtype=torch.int64)
    rows = (last.ids_T, last.position_T, full.slot_T, sliding.slot_T, full.table_SN, sliding.table_SN)
    given = DecodeInput(*rows, torch.zeros(2), zeros, zeros)

    def compute(some: DecodeInput, output: DecodeOutput) -> None:
        step(some.as_step(), output.logits_SV)

    output = DecodeOutput(torch.full((3, SHAPE.vocab), torch.nan), zeros)
    steps = DecodeSteps(compute, DecodeBuffers(3, 11, weights.device), output, NoGraphs(), (3,), (11,))
    padded = steps.run(given).logits_SV
    torch.testing.assert_close(padded, torch.stack([one[-1] for one in wanted]), rtol=0, atol=1e-4)
