from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers
from transformers.utils.import_utils import KERNELS_MAX_VERSION, KERNELS_MIN_VERSION, is_kernels_available

from gptoss_dist.kernels import experts_hub, hub

INSTALLED = importlib.util.find_spec("kernels") is not None


def test_experts_of_the_hub_need_a_gpu():
    assert experts_hub.unavailable(torch.device("cpu")) == f"{hub.EXPERTS} needs a GPU"


@pytest.mark.skipif(INSTALLED, reason="the package `kernels` is installed")
def test_without_the_package_the_way_to_it_is_said():
    assert hub.problem_of(hub.EXPERTS) == "the package `kernels` is not installed (pip install 'gptoss-dist[hub]')"


@pytest.mark.skipif(not INSTALLED or is_kernels_available(), reason="needs a version that transformers does not want")
def test_a_version_that_transformers_does_not_want_is_named_with_the_range():
    import kernels

    problem = hub.problem_of(hub.EXPERTS)
    assert problem == (
        f"transformers {transformers.__version__} wants kernels >= {KERNELS_MIN_VERSION}, < {KERNELS_MAX_VERSION}, "
        f"and {kernels.__version__} is installed"
    )


def test_a_kernel_that_cannot_be_loaded_is_told_apart_from_one_that_can(monkeypatch, tmp_path: Path):
    """Stands in for a download that fails: only the message is ours."""

    def fails(name: str) -> None:
        raise FileNotFoundError(f"{tmp_path}:\n  no such kernel {'x' * 300}")

    monkeypatch.setattr(hub, "is_kernels_available", lambda: True)
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(hub, "load", fails)
    problem = hub.problem_of("owner/name")
    assert problem is not None
    assert problem.startswith(f"owner/name could not be loaded ({tmp_path}: no such kernel xxx")
    assert "\n" not in problem
    assert len(problem) < 260
    monkeypatch.setattr(hub, "load", lambda name: object())
    assert hub.problem_of("owner/name") is None
