from __future__ import annotations

import copy
import dataclasses

import pytest

from gptoss_dist.schema.job.generate import GenerateConf
from gptoss_dist.schema.run import RunConf


def test_a_node_is_open_until_it_is_frozen():
    run = RunConf(job=GenerateConf())
    run.prompt = "a"
    run.generation.stop.append("b")
    run.freeze()
    assert (run.prompt, tuple(run.generation.stop)) == ("a", ("b",))
    with pytest.raises(AttributeError, match=r"RunConf\.prompt: the configuration is frozen"):
        run.prompt = "c"
    with pytest.raises(AttributeError, match=r"GenerationConf\.seed"):
        run.generation.seed = 1
    with pytest.raises(AttributeError):
        run.job.builtin_tools.append("python")
    run.freeze()  # again: nothing changes
    assert run.prompt == "a"


def test_a_changed_copy_of_a_frozen_node_is_open_and_leaves_it_alone():
    run = RunConf()
    run.freeze()
    changed = dataclasses.replace(run.generation, seed=5)
    changed.top_k = 1
    assert (run.generation.seed, run.generation.top_k) == (None, None)
    assert copy.copy(run.generation) == run.generation
