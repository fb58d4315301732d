from __future__ import annotations

import pytest

from gptoss_dist.doctor.finding import Level
from gptoss_dist.doctor.links import (
    Reduced,
    clock_finding,
    judge_topology,
    machine_findings,
    reduce_finding,
    topology,
)

ALL_LINKED = (
    "\x1b[4m\tGPU0\tGPU1\tGPU2\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m\n"
    "GPU0\t X \tNV18\tNV18\t0-51\t0\t\tN/A\n"
    "GPU1\tNV18\t X \tNV18\t0-51\t0\t\tN/A\n"
    "GPU2\tNV18\tNV18\t X \t52-103\t1\t\tN/A\n"
    "\nLegend:\n\n  X    = Self\n  NV#  = Connection traversing a bonded set of # NVLinks\n"
)
"""As nvidia-smi prints it, with its underlined heading."""
ONE_APART = ALL_LINKED.replace("GPU0\t X \tNV18\tNV18", "GPU0\t X \tNV18\tSYS")


def test_the_matrix_is_read_pair_by_pair():
    assert topology(ALL_LINKED) == {(0, 1): "NV18", (0, 2): "NV18", (1, 2): "NV18"}
    assert topology(ONE_APART)[0, 2] == "SYS"
    assert topology("no devices were found") == {}


def test_links_of_all_pairs_are_one_line():
    assert [line.text for line in judge_topology(topology(ALL_LINKED))] == ["all GPUs of the machine by NVLink (NV18)"]
    assert list(judge_topology({})) == []


def test_a_pair_without_nvlink_is_named():
    (line,) = judge_topology(topology(ONE_APART))
    assert (line.level, line.text) == (Level.warning, "GPU 0 and GPU 2 have no NVLink (SYS), nor have 0 other pairs")


def test_a_wrong_sum_is_an_error_that_names_the_ranks():
    line = reduce_finding([Reduced(True, 10, 300), Reduced(False, 10, 300)], ["a", "a"], "cuda", "nccl")
    assert (line.level, line.text) == (Level.error, "a sum over all ranks is wrong on ranks 1")


@pytest.mark.parametrize(
    ("bus", "hosts", "device", "level"),
    [
        (300.0, "aa", "cuda", Level.ok),
        (12.0, "aa", "cuda", Level.warning),
        (12.0, "ab", "cuda", Level.ok),  # between machines it is the network's speed
        (1.0, "aa", "cpu", Level.ok),
    ],
)
def test_the_slowest_rank_counts(bus, hosts, device, level):
    line = reduce_finding([Reduced(True, 9, 400.0), Reduced(True, 35, bus)], list(hosts), device, "nccl")
    assert line.level is level
    assert line.text.startswith(f"nccl, 2 ranks: 35 µs for one token, {bus:.1f} GB/s for a large one")


def test_a_replica_over_two_machines_is_a_warning():
    assert [line.level for line in machine_findings(["a", "a", "b", "b"], 2)] == [Level.ok]
    lines = list(machine_findings(["a", "a", "b", "b"], 4))
    assert [line.level for line in lines] == [Level.ok, Level.warning]
    assert lines[0].text == "4 ranks on a, b"
    assert lines[1].text.startswith("the 4 ranks of replica 0 are on several machines")


def test_clocks_that_differ_are_told_with_their_machines():
    assert clock_finding([100.0, 100.4], ["a", "b"]).level is Level.ok
    line = clock_finding([107.5, 100.0], ["a", "b"])
    assert (line.level, line.text.startswith("a is 7.5 s ahead of b")) == (Level.warning, True)
