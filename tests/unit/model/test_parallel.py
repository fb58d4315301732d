"""From plans to `DistributedConfig`, and the meshes of replicas, on torch's fake process group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.distributed import DistributedConfig

from gptoss_dist.config import compose_run
from gptoss_dist.model.parallel import distributed_config, model_class
from gptoss_dist.plan.degrees import Degrees
from gptoss_dist.plan.rules import ATTENTION, EXPERTS, rules_of


@contextmanager
def world(size: int, rank: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WORLD_SIZE", str(size))
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def small_config() -> GptOssConfig:
    return GptOssConfig(
        num_hidden_layers=2, hidden_size=64, intermediate_size=64, num_local_experts=4, vocab_size=64, pad_token_id=None
    )


def rules(plan: str, packed: bool = True) -> dict[str, str]:
    return rules_of(compose_run(["model=tiny", f"plan={plan}"]).plan, packed)


def resolved(plan: str, packed: bool = True) -> tuple[dict[str, str], dict[str, str]]:
    """The tables that transformers itself makes of the config we hand it: one for tensors, one for experts."""
    config = small_config()
    distributed = distributed_config(config, rules(plan, packed), Degrees(1, 2))
    assert distributed is not None
    with torch.device("meta"):
        model = GptOssForCausalLM(config)
    tensors, experts, _ = model._resolve_parallel_plans(distributed)
    return tensors, experts


def test_one_rank_has_no_distributed_config():
    config = GptOssConfig()
    before = config.to_dict()
    assert distributed_config(config, rules("tp"), Degrees(4, 1)) is None
    assert config.to_dict() == before


@pytest.mark.parametrize("plan", ["tp", "ep", "tp_ep", "dp_tp"])
def test_auto_expresses_every_plan_that_shards_the_head(plan: str):
    config = GptOssConfig()
    found = distributed_config(config, rules(plan), Degrees(1, 4))
    assert found is not None
    assert (found.tp_size, found.tp_plan) == (4, "auto")
    assert found.ep_size == (4 if plan.endswith("ep") else 1)
    base = {**(config.base_model_tp_plan or {}), **config.base_model_ep_plan}
    expected = {name.removeprefix("model."): style for name, style in rules(plan).items() if name != "lm_head"}
    assert base == expected


def test_a_head_left_whole_is_said_in_so_many_words():
    config = GptOssConfig()
    found = distributed_config(config, rules("custom"), Degrees(1, 2))
    assert found is not None
    assert found.tp_plan == {"lm_head": "replicate"}
    assert config.base_model_tp_plan["embed_tokens"] == "replicate"


@pytest.mark.skipif(not hasattr(GptOssForCausalLM, "_resolve_parallel_plans"), reason="transformers before 5.23")
@pytest.mark.parametrize("plan", ["tp", "ep", "tp_ep", "custom"])
def test_what_transformers_resolves_are_the_plan_s_rules_for_every_layer(plan: str):
    def layered(name: str) -> list[str]:
        return [name.replace("*", str(layer)) for layer in range(2)] if "*" in name else [name]

    tensors, experts = resolved(plan, packed=False)
    wanted = {one: style for name, style in rules(plan, packed=False).items() for one in layered(name)}
    found = {name: style for name, style in (tensors | experts).items() if name in wanted}
    assert found == wanted
    others = {name: style for name, style in (tensors | experts).items() if name not in wanted and style != "replicate"}
    assert all(wanted.get(name.rpartition(".")[0]) == style for name, style in others.items())
    assert set(experts) == {name for name in experts if ".mlp.experts" in name}


def test_rules_of_other_configs_are_left_alone():
    distributed_config(GptOssConfig(), rules("tp"), Degrees(1, 2))
    assert not GptOssConfig.base_model_tp_plan
    assert "layers.*.mlp.experts" in GptOssConfig().base_model_ep_plan


@pytest.mark.parametrize(("dp", "tp"), [(1, 1), (1, 4), (4, 1)])
def test_without_replicas_of_several_ranks_the_class_is_transformers_own(dp: int, tp: int):
    assert model_class(Degrees(dp, tp), "cpu") is GptOssForCausalLM


@pytest.mark.parametrize(("rank", "members"), [(0, [0, 1]), (3, [2, 3])])
def test_a_replica_s_meshes_hold_its_own_ranks(monkeypatch, rank: int, members: list[int]):
    with world(4, rank, monkeypatch):
        cls = model_class(Degrees(2, 2), "cpu")
        config = DistributedConfig(tp_size=2, tp_plan="auto", ep_size=2)
        same, device, meshes = cls.prepare_distribute_model(config)
        assert same is config
        assert device == torch.device("cpu")
        for axis in ("tp", "ep"):
            assert meshes.get_mesh(axis).mesh.flatten().tolist() == members
        for axis in ("fsdp", "efsdp", "pp"):
            assert meshes.get_mesh(axis).size() == 1


def test_a_replica_is_not_placed_by_a_device_map():
    with pytest.raises(ValueError, match="no device_map"):
        model_class(Degrees(2, 2), "cpu").prepare_distribute_model(DistributedConfig(), "auto")


def test_upstream_shards_the_embedding_unasked():
    config = small_config()
    config.base_model_tp_plan = {"layers.*.self_attn.o_proj": "rowwise"}
    with torch.device("meta"):
        assert GptOssForCausalLM(config).tp_plan["model.embed_tokens"] == "embedding_rowwise"


def test_upstream_has_one_mesh_over_the_whole_world(monkeypatch):
    # Once this fails, a replica needs no class of its own.
    with world(4, 0, monkeypatch), pytest.raises(RuntimeError, match="requires 2 processes, but world_size is 4"):
        GptOssForCausalLM.prepare_distribute_model(DistributedConfig(tp_size=2, tp_plan="auto"))


@pytest.mark.skipif(not hasattr(DistributedConfig, "dp_replicate_size"), reason="transformers before 5.23")
def test_upstream_knows_replicas_as_fsdp_only():
    replicas = DistributedConfig(tp_size=2, tp_plan="auto", dp_replicate_size=2)
    assert replicas.dp_size == 2  # which maybe_distribute_model takes as a call for FSDP


def test_names_are_those_of_the_model():
    with torch.device("meta"):
        names = {name for name, _ in GptOssForCausalLM(small_config()).named_modules()}
    assert ATTENTION.replace("*", "1") in names
    assert EXPERTS.replace("*", "1") in names
