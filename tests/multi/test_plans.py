"""Every plan on real ranks against one process that runs transformers' own model, experts unpacked by transformers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, WIDE
from plan_ranks import CACHED, FEW, GREEDY, LONG, Case, anonymous_bytes, hold_a_share, measure_cases, tokens
from runtime_ranks import Ranks
from transformers import GptOssForCausalLM, Mxfp4Config

from gptoss_dist.config import compose_run, conf_folder
from gptoss_dist.plan.layout import pieces
from gptoss_dist.plan.rules import rules_of
from gptoss_dist.shapes import Shape

pytestmark = pytest.mark.multi

BOUND = 1e-4
SHAPES = {"small": SMALL, "wide": WIDE}
CHECKPOINTS = {
    "packed": ("small", False, ()),
    "dense": ("small", True, ()),
    "dequantised": ("small", False, ("model.dequantize=true",)),
    "90 groups": ("wide", False, ()),
}
"""Name → shape, whether it is dense, and words beside the plan's."""
WORKING = {
    "head_and_experts": {"lm_head": "colwise_gather_output", "model.layers.*.mlp.experts": "gptoss_expert_slices"},
    "hidden_embedding": {"model.embed_tokens": "embedding_colwise"},
    "split_output": {"model.layers.*.self_attn.o_proj": "rowwise_split_input"},
}
"""Tables of rules of one's own."""
REFUSED = {
    "misspelt": (
        {"model.layers.*.self_attn.query": "colwise"},
        "match nothing in the model: model.layers.*.self_attn.query.",
    ),
    "no_prefix": ({"layers.*.self_attn.q_proj": "colwise"}, "layers.*.self_attn.q_proj"),
    "one_layer": ({"model.layers.0.self_attn.o_proj": "rowwise_split_input"}, "model.layers.0.self_attn.o_proj"),
    "ignored": (
        {"model.layers.*.mlp.experts.down_proj_blocks": "grouped_gemm"},
        "model.layers.0.mlp.experts.down_proj_blocks is whole",
    ),
    "not_linear": ({"model.norm": "colwise"}, "PlanError: plan=not_linear"),
    "unknown_style": ({"model.norm": "colwize"}, "ConfigError: plan.rules: model.norm: 'colwize'"),
}
"""Rules that cannot be carried out, and what has to be said; upstream passes over the first four."""

REPLICAS = {"dp4": 4, "dp8": 8}
"""Plans as dp_tp, with more replicas than its two."""
CASES: dict[int, list[tuple[str, str]]] = {
    1: [(name, "single") for name in CHECKPOINTS] + [("packed", "auto")],
    2: [
        *(("packed", plan) for plan in ("tp", "ep", "tp_ep", "dp_tp", "custom", "auto", *WORKING)),
        *(("dense", plan) for plan in ("tp", "ep", "tp_ep")),
        *(("dequantised", plan) for plan in ("tp", "tp_ep")),
        ("90 groups", "tp"),
    ],
    4: [
        *(("packed", plan) for plan in ("tp", "ep", "tp_ep", "dp_tp", "custom")),
        *(("dense", plan) for plan in ("tp", "dp_tp")),
        ("dequantised", "ep"),
        *(("90 groups", plan) for plan in ("tp", "tp_ep")),
    ],
    8: [
        *(("packed", plan) for plan in ("tp", "ep", "tp_ep", "dp_tp", *REPLICAS)),
        ("90 groups", "tp"),
    ],
}
EVERY_CASE = [pytest.param(ranks, *case, id=f"{ranks}-{'-'.join(case)}") for ranks in CASES for case in CASES[ranks]]


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of plans beside the project's own."""
    folder = tmp_path_factory.mktemp("conf")
    (folder / "plan").mkdir()
    for name, rules in {**WORKING, **{name: rules for name, (rules, _) in REFUSED.items()}}.items():
        lines = [f"name: {name}", "dp: 1", "tp: null", "rules:", *(f"  {key}: {one}" for key, one in rules.items())]
        (folder / "plan" / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    for name, dp in REPLICAS.items():
        text = (conf_folder() / "plan" / "dp_tp.yaml").read_text()
        (folder / "plan" / f"{name}.yaml").write_text(text.replace("dp: 2", f"dp: {dp}"))
    return folder


@pytest.fixture(scope="module")
def case_of(make_checkpoint, conf: Path) -> Callable[[str, str], Case]:
    def build(checkpoint: str, plan: str) -> Case:
        shape, dense, words = CHECKPOINTS[checkpoint]
        folder = make_checkpoint(SHAPES[shape], dense)
        return Case(str(folder), (f"plan={plan}", *words), str(conf))

    return build


class Worlds:
    """What every rank got from a case; all cases of a number of ranks run in one world, started when first needed."""

    def __init__(self, case_of: Callable[[str, str], Case], guide: Path, make_folder: Callable[[str], Path]) -> None:
        self._case_of, self._guide, self._make_folder = case_of, guide, make_folder
        self._folders: dict[int, Path] = {}

    def __call__(self, ranks: int, checkpoint: str, plan: str) -> list[dict[str, Any]]:
        return self._load(ranks, self._case_of(checkpoint, plan).name)

    def guide(self) -> list[dict[str, Any]]:
        """What two ranks of transformers got from the guide's own words."""
        return self._load(2, "guide")

    def _load(self, ranks: int, name: str) -> list[dict[str, Any]]:
        if ranks not in self._folders:
            self._folders[ranks] = self._run(ranks)
        return [torch.load(self._folders[ranks] / f"{name}-{rank}.pt") for rank in range(ranks)]

    def _run(self, ranks: int) -> Path:
        folder = self._make_folder(f"world{ranks}")
        cases = [self._case_of(*case) for case in CASES[ranks]]
        if ranks == 2:
            cases += [self._case_of("packed", plan) for plan in REFUSED]
        if ranks == 1:
            measure_cases(cases, str(folder), None, None, None)
            return folder
        guide = str(self._guide) if ranks == 2 else None
        world = Ranks(ranks, partial(measure_cases, cases, str(folder), guide), folder)
        assert world.statuses(within_s=560) == [0] * ranks, world.printed()
        return folder


@pytest.fixture(scope="module")
def results(case_of, make_checkpoint, tmp_path_factory) -> Worlds:
    return Worlds(case_of, make_checkpoint(SMALL, True), tmp_path_factory.mktemp)


@pytest.fixture(scope="module")
def reference(make_checkpoint) -> Callable[[str], dict[str, Any]]:
    """Logits and greedy tokens of transformers' own model in float32, nothing of this package in it."""
    known: dict[tuple[str, bool], dict[str, Any]] = {}

    @torch.no_grad()
    def compute(shape: str, dense: bool) -> dict[str, Any]:
        unpack = {} if dense else {"quantization_config": Mxfp4Config(dequantize=True)}
        model = GptOssForCausalLM.from_pretrained(
            make_checkpoint(SHAPES[shape], dense), dtype=torch.float32, experts_implementation="eager", **unpack
        ).float()  # transformers 5.22 leaves unpacked experts in bfloat16
        ids = tokens()
        whole = model(input_ids=ids, use_cache=False).logits[0]
        greedy = ids[:, : CACHED[0]]
        for _ in range(GREEDY):
            following = model(input_ids=greedy, use_cache=False).logits[0, -1].argmax()
            greedy = torch.cat((greedy, following.view(1, 1)), dim=1)
        return {"logits": whole, "greedy": tuple(greedy[0, CACHED[0] :].tolist())}

    def get(checkpoint: str) -> dict[str, Any]:
        shape, dense, _ = CHECKPOINTS[checkpoint]
        if (shape, dense) not in known:
            known[shape, dense] = compute(shape, dense)
        return known[shape, dense]

    return get


@pytest.mark.parametrize("checkpoint", ["packed", "dense", "90 groups"])
def test_the_reference_has_something_to_say(reference, checkpoint: str):
    logits = reference(checkpoint)["logits"]
    assert 1 < logits.std() < 10
    assert len(set(logits.argmax(dim=-1).tolist())) > LONG // 2


@pytest.mark.parametrize(("ranks", "checkpoint", "plan"), EVERY_CASE)
def test_logits_are_those_of_one_process(results, reference, ranks: int, checkpoint: str, plan: str):
    wanted = reference(checkpoint)["logits"]
    for result in results(ranks, checkpoint, plan):
        assert "error" not in result, result["error"]
        found = result["logits"]
        assert (found["long"] - wanted).abs().max() <= BOUND
        assert (found["few"] - wanted[:FEW]).abs().max() <= BOUND
        assert (found["cached"] - wanted[: CACHED[1]]).abs().max() <= BOUND


@pytest.mark.parametrize(("ranks", "checkpoint", "plan"), EVERY_CASE)
def test_greedy_tokens_are_those_of_one_process(results, reference, ranks: int, checkpoint: str, plan: str):
    first, *others = [result["generated"] for result in results(ranks, checkpoint, plan)]
    assert first["greedy"] == reference(checkpoint)["greedy"]
    assert not any(tokens for one in others for tokens in one.values()), "rank 0 alone is told"


@pytest.mark.parametrize(("ranks", "checkpoint", "plan"), EVERY_CASE)
def test_sampled_tokens_repeat_with_their_seed(results, ranks, checkpoint, plan):
    answers = results(ranks, checkpoint, plan)[0]["generated"]
    assert answers["a"] == answers["b"] != answers["c"]
    assert 1 <= len(answers["cancelled"]) < 100


@pytest.mark.parametrize(("ranks", "checkpoint", "plan"), EVERY_CASE)
def test_each_rank_holds_what_was_planned_and_no_byte_more(results, case_of, ranks: int, checkpoint: str, plan: str):
    shape, dense, words = CHECKPOINTS[checkpoint]
    conf = Path(case_of(checkpoint, plan).conf or "")
    name = {1: "single"}.get(ranks, "tp") if plan == "auto" else plan
    packed = not dense and not words
    rules = rules_of(compose_run(["model=tiny", f"plan={name}"], conf).plan, packed)
    for rank, result in enumerate(results(ranks, checkpoint, plan)):
        dp, tp = result["degrees"]
        assert dp * tp == ranks
        planned = {one.name: one.local for one in pieces(SHAPES[shape], packed, rules, tp, rank % tp)}
        assert result["shapes"] == planned
        assert result["held"] == result["planned"]


@pytest.mark.parametrize(
    ("plan", "ranks", "groups"),
    [
        ("tp", 2, [45, 45]),
        ("tp", 4, [23, 23, 23, 21]),
        ("tp_ep", 4, [90, 90, 90, 90]),
        ("tp", 8, [12, 12, 12, 12, 12, 12, 12, 6]),
    ],
)
def test_ninety_groups(results, plan: str, ranks: int, groups: list[int]):
    expert = "model.layers.1.mlp.experts"
    found = [result["shapes"] for result in results(ranks, "90 groups", plan)]
    assert [shapes[f"{expert}.gate_up_proj_blocks"][1] for shapes in found] == groups
    assert [shapes[f"{expert}.down_proj_blocks"][2] for shapes in found] == groups


def test_slices_and_experts_of_four_ranks(results):
    whole: Shape = SMALL
    tp, ep = (results(4, "packed", plan) for plan in ("tp", "ep"))
    experts = "model.layers.0.mlp.experts"
    assert [one["shapes"][f"{experts}.down_proj_scales"] for one in tp] == [(8, 64, n) for n in (4, 4, 4, 3)]
    assert [one["shapes"][f"{experts}.down_proj_scales"] for one in ep] == [(2, 64, 15)] * 4
    assert tp[3]["shapes"]["model.layers.0.self_attn.sinks"] == (4,)
    assert ep[3]["shapes"]["model.layers.0.self_attn.sinks"] == (16,)
    assert ep[3]["shapes"]["lm_head.weight"] == (whole.vocab // 4, 64)


def test_one_key_value_head_and_one_expert_a_rank(results):
    tp, ep = (results(8, "packed", plan) for plan in ("tp", "ep"))
    assert [one["shapes"]["model.layers.0.self_attn.k_proj.weight"] for one in tp] == [(16, 64)] * 8
    assert [one["shapes"]["model.layers.0.mlp.experts.gate_up_proj_blocks"][0] for one in ep] == [1] * 8


def test_replicas_of_eight_ranks(results):
    degrees = {plan: {tuple(one["degrees"]) for one in results(8, "packed", plan)} for plan in ("dp_tp", *REPLICAS)}
    assert degrees == {"dp_tp": {(2, 4)}, "dp4": {(4, 2)}, "dp8": {(8, 1)}}


@pytest.mark.parametrize("plan", ["tp", "ep"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_packed_experts_stay_bytes(results, ranks: int, plan: str):
    for result in results(ranks, "packed", plan):
        packed = [name for name, dtype in result["dtypes"].items() if dtype == torch.uint8]
        assert len(packed) == 4 * SMALL.layers
        assert all(name.endswith(("_blocks", "_scales")) for name in packed)


@pytest.mark.parametrize("plan", list(REFUSED))
def test_rules_that_cannot_be_carried_out_are_named(results, plan: str):
    results(2, "packed", "tp")
    for result in results(2, "packed", plan):
        assert REFUSED[plan][1] in result.get("error", "loaded without a word")


def test_ep_is_what_the_guide_writes(results):
    for ours, theirs in zip(results(2, "dense", "ep"), results.guide(), strict=True):
        assert ours["shapes"] == theirs["shapes"]
    said = results.guide()[0]["warnings"]
    assert any(one.startswith("FutureWarning: `enable_expert_parallel`") for one in said)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from Linux' /proc")
def test_a_rank_needs_little_more_host_memory_than_its_share(make_checkpoint, tmp_path: Path):
    """235 MB of experts in tensors of up to 74 MB: reading one whole, or holding one twice, would show."""
    shape = dataclasses.replace(SMALL, layers=2, hidden=256, intermediate=2880, experts=100)
    world = Ranks(4, partial(hold_a_share, str(make_checkpoint(shape)), str(tmp_path)), tmp_path)
    before: dict[int, int] = {}
    peak: dict[int, int] = {}
    while len(list(tmp_path.glob("held-*"))) < 4 and len(world.alive()) == 4:
        for sign in tmp_path.glob("loading-*"):
            rank, now = int(sign.name.partition("-")[2]), anonymous_bytes(int(sign.read_text()))
            peak[rank] = max(now, peak.get(rank, 0))
            before.setdefault(rank, now)
        time.sleep(0.001)
    assert world.statuses(within_s=120) == [0] * 4, world.printed()
    for rank in range(4):
        share = int((tmp_path / f"held-{rank}").read_text())
        assert 40e6 < share < 65e6
        assert peak[rank] - before[rank] < share + 15e6
