from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from gptoss_dist.errors import RankError
from gptoss_dist.runtime.agree import PACKAGES, TokenFingerprint, _describe, check_agreement, together, versions
from gptoss_dist.runtime.dist import RankGroup


def test_versions_of_what_can_change_results():
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert set(found) == {"python", *PACKAGES}


def test_the_rank_that_differs_from_most_comes_first():
    assert _describe(["a", "a", "b", "a"]) == "rank 2 has b; ranks 0, 1, 3 have a"
    assert _describe(["b", "a", "a", "a"]) == "rank 0 has b; ranks 1, 2, 3 have a"
    assert _describe(["a", "b", "c", "a"]) == "rank 1 has b; rank 2 has c; ranks 0, 3 have a"


def test_in_a_tie_those_that_differ_from_the_first_come_first():
    assert _describe(["z", "z", "a", "a"]) == "ranks 2, 3 have a; ranks 0, 1 have z"


def test_ranks_may_be_some_of_all():
    assert _describe(["a", "b"], [4, 5]) == "rank 5 has b; rank 4 has a"


class Gathered:
    """What four ranks have."""

    def __init__(self, *values: object) -> None:
        self._values = values

    def all_gather_object(self, value: object) -> list:
        return list(self._values)


def test_replicas_need_not_agree_with_each_other():
    advice = "Start again."
    check_agreement(Gathered({"a": "1"}, {"a": "1"}, {"a": "2"}, {"a": "2"}), "it", {"a": "1"}, advice, size=2)
    apart = Gathered({"a": "1"}, {"a": "1"}, {"a": "2"}, {"a": "1"})
    with pytest.raises(RankError, match=r"^it differs between ranks: a: rank 3 has 1; rank 2 has 2\. Start again\.$"):
        check_agreement(apart, "it", {"a": "1"}, advice, size=2)
    with pytest.raises(RankError, match=r"^it differs between ranks: a: rank 2 has 2; ranks 0, 1, 3 have 1\."):
        check_agreement(apart, "it", {"a": "1"}, advice)


def test_a_rank_alone_agrees_with_itself():
    tokens = TokenFingerprint([0])
    tokens.update(range(1000))
    tokens.check(RankGroup(0, 0, 1, torch.device("cpu")))


def test_a_rank_alone_succeeds_or_says_why():
    alone = RankGroup(0, 0, 1, torch.device("cpu"))
    assert together(alone, lambda: "done") == "done"
    with pytest.raises(RankError, match=r"^rank 0: .*missing"):
        together(alone, Path("/missing").read_bytes)
    with pytest.raises(ZeroDivisionError):
        together(alone, lambda: 1 // 0)
