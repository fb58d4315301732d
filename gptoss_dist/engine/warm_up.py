"""Takes prompts of many sizes through the step, and chooses from a row, so that no request waits for what is done once.

That is compilers, for each size that has kernels of its own, and what cuBLAS and torch's allocator do when a size comes
for the first time: a first prompt of 1,024 tokens took 48 ms on two H100s, the second 26. Their keys and values go
nowhere, and what they see is page 0, whatever it holds: no result is looked at.

Shape legend: T tokens, C chunks, N pages of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from gptoss_dist.engine.request import Sampling
from gptoss_dist.engine.sampler import Draw, drawing_on
from gptoss_dist.engine.staging import Staging
from gptoss_dist.engine.step_input import Chunks, Places, StepInput
from gptoss_dist.engine.truncation import cuts_of, truncate_on
from gptoss_dist.kernels import experts_grouped, experts_shapes, experts_tiles


def warm_up(
    step: Callable[[StepInput], torch.Tensor], device: torch.device, page_size: int, sizes: Iterable[int]
) -> None:
    """Run `step` with one prompt for each of `sizes`, numbers of tokens. Collective over the replica."""
    for tokens in sizes:
        step(prompt_alone(tokens, device, page_size))


def warm_up_choice(vocabulary: int, device: torch.device, dtype: torch.dtype) -> None:
    """Cut one row of logits in every way and draw from what is left, as careful rows are.

    In the model's `dtype`, and in float32 as where requests change logits beside.
    """
    samplings = [Sampling(max_tokens=1, temperature=1.0, top_k=2, top_p=0.5, min_p=0.1)]
    cuts = cuts_of(samplings, vocabulary, Staging(device))
    assert cuts is not None
    row_1 = torch.zeros(1, dtype=torch.int64, device=device)
    for kind in {dtype, torch.float32}:
        cut_1V = truncate_on(device)(torch.zeros(1, vocabulary, dtype=kind, device=device), row_1, cuts)
        drawing_on(device).best_of_shard(cut_1V, 0, *Draw(torch.ones(1, device=device), row_1, row_1))


def prompt_sizes(step_tokens: int, top_k: int, experts: int) -> list[int]:
    """Numbers of tokens that matter, the largest first: the memory that it takes serves the others.

    `top_k` of the model's `experts` are chosen for each token.
    """
    powers = (1 << bits for bits in range(step_tokens.bit_length()))
    by_routes = (*experts_shapes.fewest_tokens(top_k, experts), *experts_grouped.fewest_tokens(top_k, experts))
    sizes = {*experts_tiles.fewest_tokens(), *by_routes, *powers, step_tokens}
    return sorted((tokens for tokens in sizes if tokens <= step_tokens), reverse=True)


def prompt_alone(tokens: int, device: torch.device, page_size: int) -> StepInput:
    """A step of one prompt, which keeps nothing and chooses a token after its last one."""

    def ints(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    nowhere_T = torch.full((tokens,), -1, dtype=torch.int64, device=device)
    table_CN = torch.zeros(1, -(-tokens // page_size), dtype=torch.int32, device=device)
    places = Places(nowhere_T, table_CN[:0], table_CN)
    return StepInput(
        ids_T=torch.zeros(tokens, dtype=torch.int64, device=device),
        position_T=torch.arange(tokens, dtype=torch.int32, device=device),
        decoding=0,
        full=places,
        sliding=places,
        chunks=Chunks(ints(0), ints(tokens), ints(0), tokens),
        sampled_R=torch.tensor([tokens - 1], device=device),
    )
