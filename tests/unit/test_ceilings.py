from __future__ import annotations

import pytest

from gptoss_dist.ceilings import CEILINGS, ceiling_of


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("NVIDIA H200", 4.58e12),
        ("NVIDIA H100 80GB HBM3", 3.0e12),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA A100-SXM4-80GB", None),
        ("NVIDIA GH200 480GB", None),
        ("", None),
        (None, None),
    ],
)
def test_a_gpu_that_is_not_listed_has_no_numbers(name, read):
    found = ceiling_of(name)
    assert (found.read_bytes_per_s if found else None) == read


def test_every_number_has_a_source():
    assert all(one.source for one in CEILINGS)


def test_all_reduce_lies_on_straight_lines_between_what_was_measured():
    h200 = ceiling_of("NVIDIA H200")
    assert h200 is not None
    for tokens, microseconds in ((1, 7.0), (8, 8.2), (80, 12.1), (128, 15.2), (4096, 122.0)):
        assert h200.all_reduce_s(4, tokens) == pytest.approx(microseconds * 1e-6)
    assert h200.all_reduce_s(4, 5000) is None
    assert h200.all_reduce_s(8, 1) is None
