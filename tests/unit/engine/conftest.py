"""A small random model, loaded once for the tests of the engine's step."""

from __future__ import annotations

import pytest

from gptoss_dist.config import compose_run
from gptoss_dist.session import Session, open_session


@pytest.fixture(scope="session")
def open_small(make_checkpoint):
    """`open_small("model.dtype=bfloat16", dense=True)`: a session over the small checkpoint on this process alone."""

    def open_it(*words: str, dense: bool = False) -> Session:
        path = f"model.path={make_checkpoint(dense=dense)}"
        base = ["model=gpt_oss_20b", path, "plan=single", "cluster.device=cpu", "cluster.log_level=error"]
        return open_session(compose_run([*base, *words]), None)

    return open_it


@pytest.fixture(scope="session")
def small_session(open_small) -> Session:
    return open_small("model.dtype=float32")
