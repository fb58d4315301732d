from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

import torch

from gptoss_dist.kernels import dependent_launch


@pytest.fixture(autouse=True)
def off_again():
    yield
    dependent_launch.enable(True)


@pytest.mark.parametrize(
    ("on", "kind", "capability", "wanted"),
    [
        (False, "cuda", 9, {"DEPENDENT": False}),
        (True, "cuda", 9, {"DEPENDENT": True, "launch_pdl": True}),
        (True, "cuda", 10, {"DEPENDENT": True, "launch_pdl": True}),
        (True, "cuda", 8, {"DEPENDENT": False}),
        (True, "cpu", 9, {"DEPENDENT": False}),
    ],
)
def test_only_where_it_is_wanted_and_the_gpu_has_it(on, kind, capability, wanted, monkeypatch):
    monkeypatch.setattr(dependent_launch, "capability", lambda device: (capability, 0))
    dependent_launch.enable(on)
    assert dependent_launch.options(torch.device(kind)) == wanted
