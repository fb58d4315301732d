from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from gptoss_dist.engine import warm_up as warm_up_module
from gptoss_dist.engine.reduce import choose_reducer
from gptoss_dist.engine.runner import allocate_cache
from gptoss_dist.engine.size import CacheSize
from gptoss_dist.engine.step import Cache, Step
from gptoss_dist.engine.take_weights import take_weights
from gptoss_dist.engine.warm_up import prompt_alone, prompt_sizes, warm_up, warm_up_choice
from gptoss_dist.kernels import experts_shapes, experts_tiles, truncation_reference
from gptoss_dist.kernels.step_kernels import step_kernels


def test_each_set_of_block_shapes_is_used():
    sets = {experts_tiles.candidates(tokens) for tokens in experts_tiles.fewest_tokens()}
    assert {experts_tiles.candidates(tokens) for tokens in range(1, 4000)} == sets


@pytest.mark.parametrize("experts", [32, 128])
@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 8, 16])
def test_each_cuda_kernel_is_used(top_k, experts):
    def kernels(counts: Iterable[int]) -> set[object]:
        return {
            (experts_shapes.candidates(tokens, tokens * top_k / experts)[:1], experts_shapes.needs_list(tokens, top_k))
            for tokens in counts
        }

    assert kernels(prompt_sizes(4000, top_k, experts)) == kernels(range(1, 4000))


def test_no_more_tokens_than_a_step_takes():
    taken: list[int] = []
    sizes = prompt_sizes(100, 4, 32)
    warm_up(lambda given: taken.append(len(given.ids_T)) or torch.zeros(1), torch.device("cpu"), 16, sizes)
    assert taken == sizes == [100, 97, 65, 64, 33, 32, 16, 9, 8, 5, 4, 2, 1]


def test_a_step_that_is_not_looked_at_leaves_the_pages_as_they_were(small_session):
    weights, kernels = take_weights(small_session.loaded, 0), step_kernels("reference")
    pages = allocate_cache(weights, CacheSize(5, 5), 4)
    for layer in pages:
        layer.normal_()
    before = [layer.clone() for layer in pages]
    sums = choose_reducer(kernels, small_session.group, None, 4, weights.hidden, weights.dtype, weights.device)
    step = Step(weights, kernels, [Cache(*layer) for layer in pages], sums.reducer)
    logits = step(prompt_alone(9, weights.device, 4))
    assert logits.shape == (1, weights.head_VH.shape[0])
    assert all(torch.equal(layer, old) for layer, old in zip(pages, before, strict=True))


def test_a_row_is_cut_and_drawn_from(monkeypatch):
    seen: list[tuple[tuple[int, ...], torch.dtype]] = []

    def truncate(logits_RV, rows_L, cuts):
        seen.append((logits_RV.shape, logits_RV.dtype))
        return truncation_reference.truncate(logits_RV, rows_L, cuts)

    monkeypatch.setattr(warm_up_module, "truncate_on", lambda device: truncate)
    warm_up_choice(50, torch.device("cpu"), torch.bfloat16)
    assert set(seen) == {((1, 50), torch.bfloat16), ((1, 50), torch.float32)}
