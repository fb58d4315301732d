"""The engine's step on real ranks, by every plan: its logits are those of the model's own forward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, WIDE
from runtime_ranks import Ranks
from step_ranks import LENGTHS, StepCase, measure_steps

from gptoss_dist.config import conf_folder

pytestmark = pytest.mark.multi

BOUND = 1e-4
CHECKPOINTS = {
    "packed": (SMALL, False, ()),
    "dense": (SMALL, True, ()),
    "dequantised": (SMALL, False, ("model.dequantize=true",)),
    "90_groups": (WIDE, False, ()),
}
RULES = {
    "hidden_embedding": {"model.embed_tokens": "embedding_colwise"},
    "split_output": {"model.layers.*.self_attn.o_proj": "rowwise_split_input"},
    "head_and_experts": {"lm_head": "colwise_gather_output", "model.layers.*.mlp.experts": "gptoss_expert_slices"},
}
REFUSED = {
    "hidden_embedding": "PlanError: model.embed_tokens.weight has the shape [512, 32] on this rank",
    "split_output": "PlanError: model.layers.0.self_attn.o_proj.weight is cut over the ranks and q_proj.weight is",
}
CASES = {
    1: [(name, "single") for name in CHECKPOINTS],
    2: [
        *(("packed", plan) for plan in ("tp", "ep", "tp_ep", "dp_tp", "custom", "head_and_experts")),
        *(("dense", plan) for plan in ("tp", "ep")),
        ("dequantised", "tp_ep"),
        ("90_groups", "tp"),
    ],
    4: [
        *(("packed", plan) for plan in ("tp", "ep", "tp_ep", "dp_tp", "custom")),
        ("dense", "tp"),
        ("dequantised", "ep"),
        ("90_groups", "tp"),
    ],
    8: [*(("packed", plan) for plan in ("tp", "ep", "tp_ep", "dp4")), ("90_groups", "tp")],
}
EVERY_CASE = [pytest.param(ranks, *case, id=f"{ranks}-{'-'.join(case)}") for ranks in CASES for case in CASES[ranks]]
SPLITS = {
    "single": (False, False, False, False),
    "tp": (True, True, True, True),
    "tp_ep": (True, True, True, True),
    "dp_tp": (True, True, True, True),
    "dp4": (True, True, True, True),
    "ep": (False, True, False, True),
    "custom": (True, False, False, False),
    "head_and_experts": (False, True, False, True),
}
"""Whether attention, experts, embedding and head are cut; dp_tp over two ranks cuts nothing."""

World = Callable[[int, str, str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def results(make_checkpoint, tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("steps")
    (folder / "plan").mkdir()
    for name, rules in RULES.items():
        lines = [f"name: {name}", "dp: 1", "tp: null", "rules:", *(f"  {key}: {one}" for key, one in rules.items())]
        (folder / "plan" / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    four_replicas = (conf_folder() / "plan" / "dp_tp.yaml").read_text().replace("dp: 2", "dp: 4")
    (folder / "plan" / "dp4.yaml").write_text(four_replicas)
    ran: dict[int, Path] = {}

    def case_of(checkpoint: str, plan: str) -> StepCase:
        shape, dense, words = CHECKPOINTS[checkpoint]
        path = str(make_checkpoint(shape, dense))
        return StepCase(f"{checkpoint}-{plan}", path, (f"plan={plan}", *words), str(folder))

    def load(ranks: int, checkpoint: str, plan: str) -> list[dict[str, Any]]:
        if ranks not in ran:
            ran[ranks] = folder / str(ranks)
            ran[ranks].mkdir()
            cases = [case_of(*case) for case in CASES[ranks]]
            cases += [case_of("packed", plan) for plan in REFUSED] if ranks == 2 else []
            if ranks == 1:
                measure_steps(cases, str(ran[ranks]), None, None)
            else:
                world = Ranks(ranks, partial(measure_steps, cases, str(ran[ranks])), ran[ranks])
                assert world.statuses(within_s=560) == [0] * ranks, world.printed()
        files = [ran[ranks] / f"{checkpoint}-{plan}-{rank}.pt" for rank in range(ranks)]
        return [torch.load(file, weights_only=False) for file in files]

    return load


@pytest.mark.parametrize(("ranks", "checkpoint", "plan"), EVERY_CASE)
def test_the_step_gives_the_logits_of_the_models_own_forward(results, ranks, checkpoint, plan):
    for result in results(ranks, checkpoint, plan):
        assert "error" not in result, result["error"]
        for wanted, found, after in zip(result["wanted"], result["found"], result["after"], strict=True):
            assert wanted.abs().max() > 1, "logits of a few units: the bound means something"
            torch.testing.assert_close(found, wanted, rtol=0, atol=BOUND)
            torch.testing.assert_close(after, wanted, rtol=0, atol=BOUND, msg="the model's own forward has changed")
        assert [len(one) for one in result["found"]] == list(LENGTHS)


@pytest.mark.parametrize(("ranks", "checkpoint", "plan"), EVERY_CASE)
def test_a_step_sums_over_the_ranks_what_its_plan_cuts_and_nothing_else(results, ranks, checkpoint, plan):
    cut = SPLITS["single" if (ranks, plan) == (2, "dp_tp") else plan]
    for result in results(ranks, checkpoint, plan):
        split = result["split"]
        assert (split.attention, split.experts, split.embedding, split.head) == cut


@pytest.mark.parametrize(("ranks", "checkpoint", "plan"), EVERY_CASE)
def test_every_rank_finds_the_likeliest_token_shard_by_shard(results, ranks, checkpoint, plan):
    for result in results(ranks, checkpoint, plan):
        for found, tokens in zip(result["found"], result["tokens"], strict=True):
            assert torch.equal(tokens, found.argmax(dim=1))


@pytest.mark.parametrize("plan", REFUSED)
def test_a_cut_that_the_step_cannot_use_is_named(results, plan):
    for result in results(2, "packed", plan):
        assert result["error"].startswith(REFUSED[plan])
