"""The engine's step on one rank against the model's own forward; tests/multi does it for every plan on real ranks."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from step_checks import Paged, mixed_script, random_ids, run_script

from gptoss_dist.engine.step import Step
from gptoss_dist.engine.take_weights import take_weights
from gptoss_dist.kernels.all_reduce_reference import LocalReducer
from gptoss_dist.kernels.step_kernels import step_kernels

BOUND = 1e-4
LENGTHS, PROMPTS = (45, 21, 30), (33, 16, 9)


def step_over(session, ids, page_size=4):
    return step_of(take_weights(session.loaded, 0), step_kernels("reference"), ids, page_size)


def step_of(weights, kernels, ids, page_size=4):
    paged = Paged(ids, page_size, weights.window)
    return Step(weights, kernels, paged.cache(weights), LocalReducer()), paged


def with_rows(weights, sums=None):
    """With `expert_rows` in plain torch, every route a token of its own; `sums` takes the place of the experts."""

    def rows_of(experts):
        def expert_rows(hidden_TH, index_TK, weight_TK):
            hidden_PH = hidden_TH.repeat_interleave(index_TK.shape[1], dim=0)
            return experts(hidden_PH, index_TK.reshape(-1, 1), weight_TK.reshape(-1, 1)).float()

        return expert_rows

    layers = [
        dataclasses.replace(layer, experts=sums or layer.experts, expert_rows=rows_of(layer.experts))
        for layer in weights.layers
    ]
    return dataclasses.replace(weights, layers=tuple(layers))


def not_to_be_called(*_):
    raise AssertionError


@torch.no_grad()
def own_forward(session, ids):
    return [session.loaded.model(input_ids=one[None]).logits[0] for one in ids]


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("chunk", [1, 7, 16, 64])
def test_contexts_across_page_and_window_edges(small_session, page_size, chunk):
    ids = random_ids(LENGTHS, 512)
    step, paged = step_over(small_session, ids, page_size)
    found = run_script(step, paged, mixed_script(LENGTHS, PROMPTS, chunk), torch.device("cpu"))
    for one, wanted in zip(found, own_forward(small_session, ids), strict=True):
        assert wanted.abs().max() > 1
        torch.testing.assert_close(one, wanted, rtol=0, atol=BOUND)


def test_only_the_rows_that_choose_a_token_go_through_the_head(small_session):
    ids = random_ids((20, 12), 512, seed=2)
    step, paged = step_over(small_session, ids)
    step_input = paged.step_input([(0, 0, 20), (1, 0, 12)], torch.device("cpu"))
    rows = torch.tensor([31, 19])
    found = step(dataclasses.replace(step_input, sampled_R=rows))
    wanted = torch.cat(own_forward(small_session, ids))[rows]
    torch.testing.assert_close(found, wanted, rtol=0, atol=BOUND)


def test_logits_go_where_they_are_wanted(small_session):
    ids = random_ids((9,), 512, seed=3)
    step, paged = step_over(small_session, ids)
    place = torch.full((9, 512), torch.nan)
    found = step(paged.step_input([(0, 0, 9)], torch.device("cpu")), place)
    assert found.data_ptr() == place.data_ptr()
    torch.testing.assert_close(place, own_forward(small_session, ids)[0], rtol=0, atol=BOUND)


def test_dense_experts_give_the_models_own_logits(open_small):
    session = open_small("model.dtype=float32", dense=True)
    ids = random_ids(LENGTHS, 512, seed=4)
    step, paged = step_over(session, ids)
    found = run_script(step, paged, mixed_script(LENGTHS, PROMPTS, 11), torch.device("cpu"))
    for one, wanted in zip(found, own_forward(session, ids), strict=True):
        torch.testing.assert_close(one, wanted, rtol=0, atol=BOUND)


@pytest.mark.parametrize("dense", [False, True])
def test_routes_may_be_summed_where_the_norm_is_made(open_small, dense):
    session = open_small("model.dtype=float32", dense=dense)
    ids = random_ids(LENGTHS, 512, seed=5)
    weights = with_rows(take_weights(session.loaded, 0), sums=not_to_be_called)
    step, paged = step_of(weights, step_kernels("reference"), ids)
    found = run_script(step, paged, mixed_script(LENGTHS, PROMPTS, 11), torch.device("cpu"))
    for one, wanted in zip(found, own_forward(session, ids), strict=True):
        torch.testing.assert_close(one, wanted, rtol=0, atol=BOUND)


def relative_errors(found, truth):
    """‖found − truth‖ / ‖truth‖ over the logits of each token."""
    pairs = zip(found, truth, strict=True)
    return torch.cat([(one.float() - wanted).norm(dim=1) / wanted.norm(dim=1) for one, wanted in pairs])


@pytest.mark.parametrize("fused", [False, True])
def test_in_bfloat16_the_step_errs_no_more_than_the_models_own_forward(small_session, open_small, fused):
    """Against float32 on the same weights.

    Both round activations to 8 bits of mantissa at the same places and add in other orders, so their errors are two
    samples of one distribution. Its tail belongs to tokens for which a rounding changed an expert, in either of them,
    so medians are compared. That of 288 tokens has a standard error of about 8 % (1.25 σ / √288, σ of the size of the
    median), and their ratio one of 11 %: 1.4 lies more than three of those away.
    """
    low, own, mine = open_small("model.dtype=bfloat16"), [], []
    for seed in range(3):
        ids = random_ids(LENGTHS, 512, seed=seed)
        truth = own_forward(small_session, ids)
        weights = take_weights(low.loaded, 0)
        step, paged = step_of(with_rows(weights), step_kernels("reference"), ids) if fused else step_over(low, ids)
        found = run_script(step, paged, mixed_script(LENGTHS, PROMPTS, 11), torch.device("cpu"))
        own.append(relative_errors(own_forward(low, ids), truth))
        mine.append(relative_errors(found, truth))
    own_median, median = torch.cat(own).median().item(), torch.cat(mine).median().item()
    assert len(torch.cat(mine)) == 288
    assert 0.005 < own_median < 0.1
    assert median < 1.4 * own_median


def test_a_chunk_after_which_nothing_is_chosen_fills_its_pages(small_session):
    ids = random_ids((20,), 512, seed=6)
    step, paged = step_over(small_session, ids)
    first = paged.step_input([(0, 0, 12)], torch.device("cpu"))
    found = step(dataclasses.replace(first, sampled_R=torch.empty(0, dtype=torch.int64)))
    assert found.shape == (0, 512)
    rest = step(paged.step_input([(0, 12, 8)], torch.device("cpu")))
    torch.testing.assert_close(rest, own_forward(small_session, ids)[0][12:], rtol=0, atol=BOUND)
