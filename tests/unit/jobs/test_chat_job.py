from __future__ import annotations

from types import SimpleNamespace

import pytest

from gptoss_dist.config import compose_run
from gptoss_dist.errors import DoesNotFitError
from gptoss_dist.jobs.chat import check_model


def test_instructions_that_fill_the_context_are_refused_by_the_models_config():
    check_model(compose_run(["job=chat", "model=tiny"]), SimpleNamespace(shape=SimpleNamespace(max_position=4096)))
    run = compose_run(["job=chat", "model=tiny", "job.system=" + "word " * 100])
    check_model(run, SimpleNamespace(shape=SimpleNamespace(max_position=4096)))
    with pytest.raises(DoesNotFitError, match=r"job\.system and job\.tools take \d+ tokens, .* context is 64\."):
        check_model(run, SimpleNamespace(shape=SimpleNamespace(max_position=64)))
