"""What changes logits before a token is chosen: biases, penalties for what was said, a mask from outside.

Presence and frequency penalties as OpenAI's API defines them (subtracted, over the output); the repetition penalty of
CTRL (arXiv:1909.05858: positive logits divided, negative ones multiplied, over prompt and output).
Shape legend: V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from gptoss_dist.engine.request import Sampling


def adjust(logits_V: torch.Tensor, sampling: Sampling, prompt: Sequence[int], output: Sequence[int]) -> torch.Tensor:
    """The logits after biases and penalties; `logits_V` itself where the request asks for none."""
    if sampling.plain:
        return logits_V
    logits_V = logits_V.clone()
    if sampling.repetition_penalty != 1:
        said = torch.tensor(sorted({*prompt, *output}), device=logits_V.device)
        values = logits_V[said]
        factor = sampling.repetition_penalty
        logits_V[said] = torch.where(values > 0, values / factor, values * factor)
    if output and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = Counter(output)
        tokens = torch.tensor(sorted(counts), device=logits_V.device)
        amounts = torch.tensor([counts[token] for token in sorted(counts)], device=logits_V.device)
        logits_V[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * amounts
    for token, bias in sampling.logit_bias:
        logits_V[token] += bias
    return logits_V
