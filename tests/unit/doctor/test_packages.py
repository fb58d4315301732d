from __future__ import annotations

from pathlib import Path

import pytest
from transformers.utils.import_utils import KERNELS_MAX_VERSION, KERNELS_MIN_VERSION

from gptoss_dist.doctor.finding import Level
from gptoss_dist.doctor.packages import installed, kernels_finding, kernels_range, package_findings, unmet

VERSIONS = {"torch": "2.11.0+cu130", "triton": "3.6.0", "tokenizers": "0.22.1"}


def test_this_environment_is_one_that_belongs_together():
    found = list(package_findings(wants_hub=False))
    assert [one for one in found if one.level is not Level.ok and one.about == "packages"] == []
    assert found[0].text.startswith("python 3.")
    assert f"transformers {installed('transformers')}" in found[0].text


@pytest.mark.parametrize(
    ("requirement", "level", "text"),
    [
        ("triton==3.6.0; platform_system == 'Linux'", None, ""),
        ("torch>=2.11,<2.15", None, ""),
        ("triton==3.5.1", Level.warning, "it wants triton==3.5.1, and 3.6.0 is installed"),
        ("tokenizers>=0.23.1,<0.24", Level.warning, "it wants tokenizers<0.24,>=0.23.1, and 0.22.1 is installed"),
        ("safetensors>=0.8", Level.error, "it needs safetensors, which is missing"),
        ("safetensors>=0.8; extra == 'dev'", None, ""),
        ("safetensors>=0.8; python_version < '3'", None, ""),
    ],
)
def test_a_requirement_is_compared_with_what_is_installed(requirement, level, text):
    found = list(unmet("it", [requirement], VERSIONS.get))
    assert [(one.level, one.text) for one in found] == ([] if level is None else [(level, text)])
    assert all(one.way_out.startswith("pip install '") for one in found)


def test_what_the_run_works_without_is_no_error_where_it_lacks_something():
    (found,) = unmet("kernels", ["sigstore>=4", "torch"], VERSIONS.get, lost="the hub's kernels may be left out")
    assert (found.level, found.way_out) == (Level.warning, "pip install 'sigstore>=4'")
    assert found.text == (
        "kernels needs sigstore, which is missing: the hub's kernels may be left out, and no other part of the run "
        "needs it"
    )


@pytest.mark.parametrize(("wants_hub", "level"), [(False, Level.warning), (True, Level.error)])
def test_the_hub_s_package_alone_is_such(wants_hub: bool, level: Level, tmp_path: Path, monkeypatch):
    for name, needed in (("kernels", "no-such-signer>=4"), ("accelerate", "no-such-reader")):
        folder = tmp_path / f"{name}-0.18.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: {name}\nVersion: 0.18.2\nRequires-Dist: {needed}\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = [one for one in package_findings(wants_hub) if "no-such" in one.text]
    assert [one.level for one in found if "no-such-reader" in one.text] == [Level.error]
    assert [one.level for one in found if "no-such-signer" in one.text] == [level]


@pytest.mark.parametrize(
    ("version", "wants_hub", "level"),
    [
        ("0.18.2", True, Level.ok),
        ("0.17.2", True, Level.error),
        ("0.17.2", False, Level.warning),
        ("0.19.0", True, Level.error),
        (None, True, Level.error),
        (None, False, Level.ok),
    ],
)
def test_transformers_and_kernels_are_a_pair(version, wants_hub, level):
    (found,) = kernels_finding(version, ("0.18.2", "0.19.0"), "5.23.0", wants_hub)
    assert found.level is level
    assert ("kernels>=0.18.2,<0.19.0" in found.way_out) == (level is not Level.ok)


def test_the_range_is_the_one_of_the_installed_transformers():
    assert kernels_range() == (KERNELS_MIN_VERSION, KERNELS_MAX_VERSION)
