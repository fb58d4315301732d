from __future__ import annotations

from gptoss_dist.doctor.finding import error, ok, warning
from gptoss_dist.doctor.report import as_json, errors, merge, text_of

DISK, GPU = ok("disk", "100 GB"), ok("device", "H200")
OLD = error("device", "V100", "kernels=reference")
SLOW = warning("links", "no NVLink", "plan=dp_tp")
FOUND = [[DISK, GPU], [OLD], [DISK, GPU, SLOW]]
"""Ranks 0 and 2 are the first of their machines, so that rank 1 did not look at the disk."""


def test_what_all_who_looked_found_is_said_once():
    assert text_of(merge(FOUND)).splitlines() == [
        "ok       disk          100 GB",
        "ok       device        H200 (rank 0, 2)",
        "error    device        V100 (rank 1)",
        "                       → kernels=reference",
        "warning  links         no NVLink",
        "                       → plan=dp_tp",
        "1 error, 1 warning",
    ]


def test_programs_get_the_same():
    content = as_json(merge(FOUND))
    assert content["healthy"] is False
    assert [(one["level"], one["ranks"]) for one in content["findings"]] == [
        ("ok", []),
        ("ok", [0, 2]),
        ("error", [1]),
        ("warning", []),
    ]


def test_warnings_alone_are_healthy():
    lines = merge([[DISK, SLOW]])
    assert (as_json(lines)["healthy"], errors(lines)) == (True, 0)
    assert text_of(lines).splitlines()[-1] == "no errors, 1 warning"
