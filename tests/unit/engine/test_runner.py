from __future__ import annotations

import dataclasses

import pytest
import torch
from recording_player import Recorder

from gptoss_dist.engine import runner as runner_module
from gptoss_dist.engine.captured import CapturedSteps, graphs_problem
from gptoss_dist.engine.graphs import NoGraphs
from gptoss_dist.engine.paged_engine import PagedEngine
from gptoss_dist.engine.request import Request, Sampling
from gptoss_dist.engine.runner import PagedRunner, allocate_cache
from gptoss_dist.engine.size import CacheSize
from gptoss_dist.engine.take_weights import take_weights
from gptoss_dist.engine.transformers_engine import TransformersEngine
from gptoss_dist.errors import KernelError
from gptoss_dist.kernels.step_kernels import step_kernels
from gptoss_dist.schema.engine import EngineConf
from gptoss_dist.schema.kernels import ExpertKernel

CONF = EngineConf(name="test", page_size=4, step_tokens=64, max_running=5)
SIZE = CacheSize(80, 80)


class Buffered(PagedRunner):
    """As on a GPU, but what a graph would replay is called."""

    def __init__(self, loaded, world, ranks, conf, size, player: NoGraphs) -> None:
        super().__init__(loaded, world, ranks, conf, size)
        pages = -(-self._weights.context // conf.page_size)
        self._captured = CapturedSteps(self._step, self._logits, self._weights, conf, pages, player)


def requests(temperature: float) -> list[Request]:
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, 512, (length,), generator=generator).tolist() for length in (30, 3, 17, 9, 22, 14)]
    lengths = (12, 30, 8, 25, 5, 18)
    return [
        Request(str(number), tuple(prompt), Sampling(length, temperature=temperature, seed=number))
        for number, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]


def answers(engine, wanted) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for event in engine.stream(wanted):
        found[event.request_id] = found.get(event.request_id, ()) + event.tokens
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_steps_over_buffers_give_the_tokens_of_the_models_own_forward(small_session, temperature):
    session, some = small_session, requests(temperature)
    reference = TransformersEngine(session.loaded, session.group, session.ranks, 0)
    player = Recorder()
    buffered = Buffered(session.loaded, session.group, session.ranks, CONF, SIZE, player)
    engine = PagedEngine(session.loaded, session.group, session.ranks, CONF, SIZE, 0, runner=buffered)
    assert answers(engine, some) == answers(reference, some)
    prompted = {key for key in player.played if key[0] == "prompts"}
    assert prompted == {("prompts", 0, 64), ("prompts", 5, 64)}
    assert sum(key not in prompted for key in player.played) > 20


def test_requests_that_look_at_all_logits_go_beside_quick_ones(small_session):
    session, some = small_session, requests(0.8)
    some[1] = dataclasses.replace(some[1], sampling=dataclasses.replace(some[1].sampling, top_p=0.5))
    some[3] = dataclasses.replace(some[3], sampling=dataclasses.replace(some[3].sampling, presence_penalty=1.5))
    buffered = Buffered(session.loaded, session.group, session.ranks, CONF, SIZE, NoGraphs())
    engine = PagedEngine(session.loaded, session.group, session.ranks, CONF, SIZE, 0, runner=buffered)
    plain = PagedEngine(session.loaded, session.group, session.ranks, CONF, SIZE, 0)
    assert answers(engine, some) == answers(plain, some)


def test_what_runs_is_said_once(small_session, caplog):
    with caplog.at_level("INFO"):
        PagedRunner(small_session.loaded, small_session.group, small_session.ranks, CONF, SIZE)
    said = [record.getMessage() for record in caplog.records if record.name == runner_module.__name__]
    assert said == [
        "engine: plain torch (the built-in Triton kernels need a GPU); no CUDA graphs (there are none on cpu)"
    ]


def test_an_attention_that_the_engine_lacks_is_refused(small_session):
    kernels = dataclasses.replace(small_session.loaded.kernels, step="", step_reason="kernels.attention=x is not one")
    loaded = dataclasses.replace(small_session.loaded, kernels=kernels)
    with pytest.raises(KernelError, match=r"backend=engine has .* kernels.attention=x is not one.* Take kernels.att"):
        PagedRunner(loaded, small_session.group, small_session.ranks, CONF, SIZE)


def test_the_cache_has_pages_of_both_kinds(small_session):
    weights = take_weights(small_session.loaded, 0)
    shapes = [tuple(pages.shape) for pages in allocate_cache(weights, CacheSize(7, 3), 4)]
    assert shapes == [(2, 3, 4, 8, 16), (2, 7, 4, 8, 16)] * 2


def test_why_there_are_no_graphs(small_session):
    weights = take_weights(small_session.loaded, 0)
    on_gpu = dataclasses.replace(weights, head_VH=weights.head_VH.to("meta"))
    kernels, triton = step_kernels("reference"), ExpertKernel.triton

    def problem(weights=weights, experts=triton, **conf):
        return graphs_problem(dataclasses.replace(CONF, **conf), weights, kernels, experts)

    assert problem(graphs=False) == "engine.graphs=false"
    assert problem() == "there are none on cpu"
    assert problem(weights=on_gpu) == "there are none on meta"
