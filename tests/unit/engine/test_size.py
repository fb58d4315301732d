from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import SMALL

from gptoss_dist.engine import size as size_module
from gptoss_dist.engine.decode_buffers import DecodeBuffers
from gptoss_dist.engine.device_tables import DeviceTables
from gptoss_dist.engine.prompt_buffers import PromptBuffers
from gptoss_dist.engine.size import CacheSize, cache_size, chosen_step, workspace
from gptoss_dist.errors import DoesNotFitError
from gptoss_dist.schema.engine import EngineConf
from gptoss_dist.shapes import SIZES

CONF = EngineConf(name="test", page_size=16, step_tokens=64, max_running=4)


@pytest.fixture
def with_free(monkeypatch):
    """`with_free(bytes)`: as if so much were free on this rank's GPU."""
    return lambda free: monkeypatch.setattr(size_module, "free_bytes", lambda device, conf: free)


def test_the_workspace_of_120b_counts_each_part():
    shape = SIZES["120b"]
    conf = dataclasses.replace(CONF, step_tokens=2048, max_running=64)
    found = workspace(shape, conf, 2, shape.vocab, 2)
    assert found.activations == 2048 * ((4 * 2880 + 2 * (128 + 16) * 64) * 2 + 3 * 2880 * 4)
    assert found.experts == 2048 * 4 * (3 * 2880 * 2 + 2 * 2880 * 4)
    assert found.logits == 64 * (2 * 201088 * 2 + 201088 * 32)
    # 9 numbers of sequences by two widths, 12 numbers of tokens with and without decoding; the largest 64 + 1024 rows
    shared = (64 + 1024) * (found.activations + found.experts) // 2048
    assert found.graphs == (9 * 2 + 2 * 12) * 8 * 2**20 + shared
    assert found.tables == 5 * 2 * 64 * 8192 * 4
    assert found.splits == 2 * (256 + 64) * 64 * (64 + 2) * 4
    assert found.sums == 2 * 2 * 1024 * 2880 * 4  # two slots, from two ranks
    assert found.total == sum(dataclasses.astuple(found))
    assert 0.5e9 < found.total < 2.1e9


def test_without_graphs_nothing_is_kept_for_them():
    found = workspace(SIZES["120b"], dataclasses.replace(CONF, graphs=False), 2, 64, 1)
    assert found.graphs == found.sums == 0
    assert found.splits == (256 + 4) * 64 * (64 + 2) * 4
    assert found.tables == 2 * 2 * 4 * 8192 * 4


def test_the_tables_of_the_longest_context_are_counted():
    conf = dataclasses.replace(CONF, page_size=1)
    shape = dataclasses.replace(SMALL, max_position=1000)
    kept = DeviceTables(4, 1000, torch.device("cpu"))._tables_2XN.nbytes
    buffers = DecodeBuffers(4, 1000, torch.device("cpu")).all
    decode = buffers.full_table_SN.nbytes + buffers.sliding_table_SN.nbytes
    prompts = PromptBuffers(4, 64, 1000, torch.device("cpu"))._tables_22RN.nbytes
    assert (
        workspace(shape, conf, 4, 512, 1).tables == kept + kept + decode + prompts
    )  # picked for a step: as many again


def test_on_a_gpu_the_cache_takes_what_weights_and_workspace_leave(small_session, with_free):
    loaded, free = small_session.loaded, 200_000_000
    with_free(free)
    found = cache_size(CONF, loaded, small_session.group)
    token = loaded.planned.cache_per_token
    sliding = found.sliding_pages * 16 * 2 * 2 * 8 * 16 * 4
    beside = workspace(SMALL, CONF, 4, 512, 1).total
    taken = sliding + beside + found.full_pages * 16 * token
    assert free - 17 * 16 * token < taken <= free  # the next page would not fit, nor the window it may bring
    assert found.full_pages > 1000
    assert found.sliding_pages == 4 * 3 + 4 + found.full_pages // 16
    assert loaded.planned.paged_per_token == token + (2 * 2 * 8 * 16 * 4) // 16


def test_asking_for_more_than_there_is_names_the_numbers(small_session, with_free):
    with_free(100_000_000)
    conf = dataclasses.replace(CONF, cache_tokens=10_000_000)
    with pytest.raises(DoesNotFitError, match=r"10000000 tokens takes .* GB .* steps up to 0\.\d\d GB, and 0\.10 GB"):
        cache_size(conf, small_session.loaded, small_session.group)


def test_what_is_asked_for_is_what_there_is(small_session):
    conf = dataclasses.replace(CONF, cache_tokens=1000)
    assert cache_size(conf, small_session.loaded, small_session.group) == CacheSize(63, 4 * 3 + 4 + 63 // 16)
    assert torch.device("cpu") == small_session.group.device
    assert cache_size(CONF, small_session.loaded, small_session.group).full_pages == 2048


@pytest.mark.parametrize(("free", "tokens"), [(None, 2048), (10**7, 2048), (10**12, 8192)])
def test_a_step_takes_many_tokens_where_there_is_room(free, tokens, small_session, with_free):
    with_free(free)
    conf = dataclasses.replace(CONF, step_tokens=None)
    assert conf.tokens_a_step == 2048
    assert chosen_step(conf, small_session.loaded, small_session.group).step_tokens == tokens
    asked = dataclasses.replace(conf, step_tokens=100)
    assert chosen_step(asked, small_session.loaded, small_session.group) == asked


def test_a_step_leaves_the_cache_that_is_asked_for(small_session, with_free):
    conf = dataclasses.replace(CONF, step_tokens=None, cache_tokens=10_000_000)
    with_free(10_000_000 * small_session.loaded.planned.paged_per_token + 1_000_000)
    assert chosen_step(conf, small_session.loaded, small_session.group).step_tokens == 2048
