from __future__ import annotations

import pytest

from gptoss_dist.errors import CheckpointError, ConfigError
from gptoss_dist.runtime.cause import Cause
from gptoss_dist.runtime.report import cause_of, say, text_of


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (CheckpointError("torn"), Cause("failed", 3, "torn", 1)),
        (ConfigError("a typo"), Cause("failed", 3, "a typo", 2)),
        (ValueError("a defect"), Cause("failed", 3, "ValueError: a defect", 1)),
        (SystemExit(7), Cause("failed", 3, "ended with exit status 7", 7)),
        (SystemExit("no more"), Cause("failed", 3, "no more", 1)),
        (KeyboardInterrupt(), Cause("stopped", 3, "stopped by SIGINT", 130)),
    ],
)
def test_what_an_exception_means(error: BaseException, cause: Cause):
    assert cause_of(error, 3) == cause


def test_our_own_errors_are_one_line():
    error = ConfigError("there is no plan 'tq'")
    assert text_of(error, cause_of(error, 3), alone=False) == "rank 3: there is no plan 'tq'"
    assert text_of(error, cause_of(error, 0), alone=True) == "error: there is no plan 'tq'"


def test_a_defect_shows_where_it_is():
    try:
        raise ValueError("a defect")
    except ValueError as error:
        text = text_of(error, cause_of(error, 3), alone=False)
    assert text.startswith("rank 3: unexpected failure\nTraceback (most recent call last):\n")
    assert "test_report.py" in text
    assert text.endswith("ValueError: a defect")


def test_say_writes_whole_lines(capsys):
    say("rank 1: gone")
    assert capsys.readouterr() == ("", "rank 1: gone\n")
