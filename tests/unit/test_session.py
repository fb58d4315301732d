from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gptoss_dist.config import compose_run
from gptoss_dist.engine.request import Request, Sampling
from gptoss_dist.engine.transformers_engine import TransformersEngine
from gptoss_dist.errors import CheckpointError, ConfigError, RankError, WorldSizeError
from gptoss_dist.kernels.registry import Chosen
from gptoss_dist.schema.cluster import Device
from gptoss_dist.schema.kernels import ExpertKernel
from gptoss_dist.schema.run import Backend, RunConf
from gptoss_dist.session import agree_on_kernels, choose_backend, open_session


def run_of(folder: Path, *words: str) -> RunConf:
    return compose_run(["model=tiny", f"model.path={folder}", "cluster.device=cpu", *words])


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("gptoss_dist"), "propagate", True)
    caplog.set_level(logging.INFO, logger="gptoss_dist")
    return caplog


@pytest.mark.parametrize("plan", ["single", "auto", "tp", "ep", "tp_ep", "custom"])
def test_one_rank_takes_any_plan_for_one(make_checkpoint, plan: str):
    words = [f"plan={plan}", "backend=transformers"]
    session = open_session(run_of(make_checkpoint(), *words), None)
    assert (session.group.world_size, session.ranks.dp, session.ranks.tp) == (1, 1, 1)
    assert session.loaded.weight_bytes == session.loaded.planned.weights
    assert isinstance(session.engine, TransformersEngine)
    events = list(session.engine.stream([Request("one", (1, 2, 3), Sampling(2))]))
    assert sum(len(event.tokens) for event in events) == 2
    session.close()
    session.close()


def test_it_says_what_was_loaded_and_how(make_checkpoint, said):
    open_session(run_of(make_checkpoint(), "plan=auto"), None)
    assert "plan=auto chose single (dp=1, tp=1): one rank" in said.text
    assert "kernels: attention: eager (flash-attention 3 needs a GPU)" in said.text
    assert "plan=single (dp=1, tp=1), attention=eager, experts=reference" in said.text
    assert "weights by rank: " in said.text


def test_ranks_of_a_replica_that_would_compute_by_other_kernels_are_refused():
    here, there = Chosen("eager", ExpertKernel.triton, ""), Chosen("eager", ExpertKernel.cuda, "")
    found: list[dict[str, str]] = []
    agree_on_kernels(here, 1, SimpleNamespace(all_gather_object=lambda mine: found.append(mine) or [mine]))
    agree_on_kernels(there, 1, SimpleNamespace(all_gather_object=lambda mine: found.append(mine) or [*found]))
    with pytest.raises(
        RankError, match=r"^the choice of kernels differs .*: experts: rank 1 has cuda; rank 0 has triton"
    ):
        agree_on_kernels(here, 2, SimpleNamespace(all_gather_object=lambda _: found))


def test_the_dtype_of_the_run_is_that_of_the_model(make_checkpoint):
    for name in ("bfloat16", "float32"):
        session = open_session(run_of(make_checkpoint(), "plan=single", f"model.dtype={name}"), None)
        assert session.loaded.model.lm_head.weight.dtype == getattr(torch, name)


def test_a_plan_for_more_ranks_than_there_are(make_checkpoint):
    with pytest.raises(WorldSizeError, match=r"plan=tp needs 2 ranks .* and 1 was started"):
        open_session(run_of(make_checkpoint(), "plan=tp", "plan.tp=2"), None)


def test_what_the_checkpoint_lacks_is_found_before_anything_is_loaded(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        open_session(run_of(tmp_path, "plan=single"), None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_is_not_replaced_by_the_cpu(make_checkpoint):
    run = compose_run(["model=tiny", f"model.path={make_checkpoint()}", "plan=single", "cluster.device=cuda"])
    assert run.cluster.device is Device.cuda
    with pytest.raises(ConfigError, match=r"cluster\.device=cuda: torch sees no GPU here"):
        open_session(run, None)


def test_a_session_is_not_changed_afterwards(make_checkpoint):
    session = open_session(run_of(make_checkpoint(), "plan=single"), None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        session.engine = None  # type: ignore[misc]
    with pytest.raises(AttributeError, match="frozen"):
        session.run.plan.tp = 2


@pytest.mark.parametrize(
    ("wanted", "step", "experts", "device_map", "found"),
    [
        ("auto", "cuda", "cuda", False, "engine"),
        ("auto", "triton", "triton", False, "engine"),
        ("auto", "reference", "reference", False, "transformers"),
        ("auto", "", "cuda", False, "transformers"),  # an attention of the hub
        ("auto", "cuda", "hub", False, "transformers"),
        ("auto", "cuda", "cuda", True, "transformers"),
        ("transformers", "cuda", "cuda", False, "transformers"),
        ("engine", "reference", "reference", False, "engine"),
    ],
)
def test_the_engine_is_taken_where_its_steps_can_be_graphs(wanted, step, experts, device_map, found):
    kernels = Chosen("eager", ExpertKernel(experts), "", step)
    plan = dataclasses.replace(compose_run([]).plan, device_map=device_map)
    assert choose_backend(Backend(wanted), plan, kernels) is Backend(found)


def test_a_session_knows_what_auto_became(make_checkpoint):
    session = open_session(run_of(make_checkpoint(), "plan=single"), None)
    assert session.backend is Backend.transformers
    assert session.run.backend is Backend.auto  # what was asked for keeps its digest


def test_the_engine_ends_before_the_group(make_checkpoint, monkeypatch):
    """A process group waits for the graphs that hold its collectives."""
    session = open_session(run_of(make_checkpoint(), "plan=single", "backend=engine"), None)
    order = []
    for name, one in (("engine", "close"), ("group", "stop")):
        ended = getattr(getattr(session, name), one)
        monkeypatch.setattr(
            type(getattr(session, name)), one, lambda _, name=name, ended=ended: (order.append(name), ended())
        )
    session.close()
    assert order == ["engine", "group"]
