"""What is played from CUDA graphs: steps that only decode, and those with prompts that are not long.

Both write to the same logits and tokens, which stay as they are until the next step.

Shape legend: S running sequences, V rows of the vocabulary here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from gptoss_dist.engine.batch import Batch
from gptoss_dist.engine.decode_buffers import DecodeBuffers, DecodeInput, DecodeOutput
from gptoss_dist.engine.graphs import DecodeSteps, Player, batch_buckets, table_widths
from gptoss_dist.engine.logits import Logits
from gptoss_dist.engine.prompt_buffers import PromptBuffers
from gptoss_dist.engine.prompt_steps import PromptSteps, prompt_buckets
from gptoss_dist.engine.quick import quick_tokens
from gptoss_dist.engine.sampler import Draw, drawing_on
from gptoss_dist.engine.step import Step
from gptoss_dist.engine.step_input import StepInput
from gptoss_dist.engine.weights import Weights
from gptoss_dist.kernels.registry import CAPTURABLE
from gptoss_dist.kernels.step_kernels import StepKernels
from gptoss_dist.schema.engine import EngineConf
from gptoss_dist.schema.kernels import ExpertKernel


class CapturedSteps:
    """The steps of every size that has a graph."""

    @torch.no_grad()
    def __init__(
        self,
        step: Step,
        logits: Callable[[torch.Tensor], Logits],
        weights: Weights,
        conf: EngineConf,
        pages: int,
        player: Player,
    ) -> None:
        """Prepare them, over buffers for the largest batch; `pages` of the longest table."""
        most, device, drawing = conf.max_running, weights.device, drawing_on(weights.device)

        def compute(given: StepInput, draw: Draw, output: DecodeOutput) -> None:
            step(given, output.logits_SV)
            output.tokens_S.copy_(quick_tokens(drawing, logits(output.logits_SV), draw))

        def compute_decode(rows: DecodeInput, output: DecodeOutput) -> None:
            compute(rows.as_step(), rows.draw, output)

        output = DecodeOutput(
            logits_SV=weights.head_VH.new_zeros(most, weights.head_VH.shape[0]),
            tokens_S=torch.zeros(most, dtype=torch.int64, device=device),
        )
        self._player = player
        buckets, prompts = batch_buckets(most), prompt_buckets(conf.tokens_a_step)
        self._prompts: PromptSteps | None = None
        if prompts:  # the largest steps first: the memory that they take serves the others
            buffers = PromptBuffers(most, prompts[-1], pages, device)
            self._prompts = PromptSteps(compute, buffers, output, player, prompts)
        widths = table_widths(pages, conf.page_size)
        decode = DecodeBuffers(most, pages, device)
        self.decode = DecodeSteps(compute_decode, decode, output, player, buckets, widths)
        """Those that only decode."""

    @property
    def summary(self) -> str:
        """What was prepared, and in what time."""
        return "; ".join(steps.summary for steps in (self.decode, self._prompts) if steps is not None)

    def run(self, batch: Batch) -> DecodeOutput | None:
        """Logits and tokens of the rows that choose one; None if there is no graph for a batch of this size."""
        if batch.decode_only:
            return self.decode.run(batch.as_decode())
        given = batch.as_step()
        if self._prompts is None or not self._prompts.takes(given):
            return None
        return self._prompts.run(given, batch.draw)

    def close(self) -> None:
        """Destroy what was prepared."""
        self._player.close()


def graphs_problem(conf: EngineConf, weights: Weights, kernels: StepKernels, experts: ExpertKernel) -> str | None:
    """Why steps cannot be CUDA graphs here; None if they can."""
    if not conf.graphs:
        return "engine.graphs=false"
    if weights.device.type != "cuda":
        return f"there are none on {weights.device.type}"
    if not kernels.capturable:
        return "plain torch reads values back from the device"
    if not weights.packed or experts not in CAPTURABLE:
        return "only kernels.experts=cuda and triton can be part of one"
    return None
