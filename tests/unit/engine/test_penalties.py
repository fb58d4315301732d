from __future__ import annotations

import torch

from gptoss_dist.engine.penalties import adjust
from gptoss_dist.engine.request import Sampling


def slowly(logits, sampling, prompt, output):
    """Token by token, as the definitions read."""
    wanted = []
    for token, value in enumerate(logits.tolist()):
        if token in prompt or token in output:
            value = value / sampling.repetition_penalty if value > 0 else value * sampling.repetition_penalty
        count = output.count(token)
        value -= sampling.presence_penalty * (count > 0) + sampling.frequency_penalty * count
        wanted.append(value + sum(bias for biased, bias in sampling.logit_bias if biased == token))
    return torch.tensor(wanted)


def test_a_plain_request_gets_its_logits_untouched():
    logits = torch.randn(8)
    assert adjust(logits, Sampling(max_tokens=1), [1], [2]) is logits


def test_penalties_and_biases_are_those_of_their_definitions():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        logits = torch.randn(12, generator=generator) * 5
        prompt, output = (torch.randint(12, (size,), generator=generator).tolist() for size in (5, 9))
        strengths = torch.rand(3, generator=generator).tolist()
        sampling = Sampling(
            max_tokens=1,
            presence_penalty=strengths[0] - 0.5,
            frequency_penalty=strengths[1],
            repetition_penalty=1 + strengths[2],
            logit_bias=((3, -100.0), (7, 2.5)),
        )
        before = logits.clone()
        found = adjust(logits, sampling, prompt, output)
        torch.testing.assert_close(found, slowly(logits, sampling, prompt, output))
        assert torch.equal(logits, before)


def test_before_the_first_token_only_the_prompt_counts():
    logits = torch.tensor([1.0, -1.0, 2.0])
    sampling = Sampling(max_tokens=1, presence_penalty=1.0, frequency_penalty=1.0, repetition_penalty=2.0)
    assert adjust(logits, sampling, [0, 1], []).tolist() == [0.5, -2.0, 2.0]
