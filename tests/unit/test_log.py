from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from gptoss_dist.log import get_logger, set_up_logging


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger("gptoss_dist")
    before = root.handlers[:], root.level, root.propagate
    yield
    root.handlers[:], root.propagate = before[0], before[2]
    root.setLevel(before[1])


def said(capsys, *, level: str = "info", rank: int | None = None) -> list[str]:
    set_up_logging(level, rank)
    logger = get_logger("gptoss_dist.model.load")
    for name in ("debug", "info", "warning", "error"):
        getattr(logger, name)("a %s", name)
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_a_process_alone_speaks_without_a_label(capsys):
    assert said(capsys) == ["a info", "a warning", "a error"]


def test_rank_0_speaks_and_says_who(capsys):
    assert said(capsys, rank=0) == ["[rank 0] a info", "[rank 0] a warning", "[rank 0] a error"]


@pytest.mark.parametrize("rank", [1, 7])
def test_other_ranks_only_warn(capsys, rank):
    assert said(capsys, rank=rank) == [f"[rank {rank}] a warning", f"[rank {rank}] a error"]


def test_debug_is_for_every_rank(capsys):
    for rank in (None, 0, 3):
        assert len(said(capsys, level="debug", rank=rank)) == 4


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_every_level_of_the_configuration(capsys, level, count):
    assert len(said(capsys, level=level)) == count


def test_a_quieter_level_quiets_other_ranks_too(capsys):
    assert said(capsys, level="error", rank=2) == ["[rank 2] a error"]


def test_setting_up_again_replaces_and_does_not_repeat(capsys):
    set_up_logging("debug", 1)
    set_up_logging("info", 0)
    assert said(capsys) == ["a info", "a warning", "a error"]
    assert len(logging.getLogger("gptoss_dist").handlers) == 1


def test_other_packages_are_left_alone(capsys):
    before = logging.getLogger().handlers[:]
    set_up_logging("debug")
    logging.getLogger("transformers").info("not ours")
    assert logging.getLogger().handlers == before
    assert "not ours" not in capsys.readouterr().err
