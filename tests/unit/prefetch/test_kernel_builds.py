from __future__ import annotations

import pytest

from gptoss_dist.prefetch.kernel_builds import build_of, fitting_builds

BUILDS = [
    "torch211-cxx11-cu126-x86_64-linux",
    "torch211-cxx11-cu130-x86_64-linux",
    "torch211-cxx11-cu130-aarch64-linux",
    "torch211-cxx11-rocm70-x86_64-linux",
    "torch212-cxx11-cu130-x86_64-linux",
    "torch-stable-abi29-cu130-x86_64-linux",
    "torch-stable-abi212-cu130-x86_64-linux",
    "torch-universal",
    "torch-cuda",
    "torch-rocm",
]


@pytest.mark.parametrize(
    ("version", "machine", "expected"),
    [
        ("2.11.0+cu130", "x86_64", [BUILDS[5], "torch-cuda", "torch-universal", *BUILDS[:2]]),
        ("2.11", "aarch64", ["torch-cuda", "torch-universal", BUILDS[2]]),
        ("2.12.1", "x86_64", [BUILDS[6], BUILDS[5], "torch-cuda", "torch-universal", BUILDS[4]]),
        ("3.0", "x86_64", ["torch-cuda", "torch-universal"]),
    ],
)
def test_builds_of_one_torch_for_one_processor_with_every_cuda(version, machine, expected):
    assert fitting_builds(BUILDS, version, machine) == sorted(expected)


@pytest.mark.parametrize(
    ("path", "build"),
    [
        ("build/torch-universal/deep/file.py", "torch-universal"),
        ("build/file", None),
        ("src/build/x/y", None),
        ("README.md", None),
    ],
)
def test_the_build_of_a_file_is_the_folder_below_build(path, build):
    assert build_of(path) == build
