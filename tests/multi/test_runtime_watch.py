from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from runtime_ranks import Ranks

from gptoss_dist.errors import CheckpointError, ConfigError
from gptoss_dist.runtime.dist import RankGroup
from gptoss_dist.runtime.watch import Watch

pytestmark = pytest.mark.multi

END_S = 60.0
"""From the start to the end of all ranks where something is wrong: much less than they would take by themselves."""
VANISHED = "its process ended without a word: killed, crashed, or its machine is lost"


def work_together(watch: Watch, group: RankGroup) -> None:
    if group.rank == 1:
        time.sleep(1.0)
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total.item() == group.world_size


def leave_early(watch: Watch, group: RankGroup) -> None:
    if group.rank != 1:
        time.sleep(1.0)  # neither rank 0's nor rank 1's end may look like a death to those still at work


def stuck_in_a_collective(watch: Watch, group: RankGroup) -> None:
    if group.rank != 0:
        dist.all_reduce(torch.ones(1))  # rank 0 never comes
    time.sleep(10 * END_S)


def first_rank_raises(watch: Watch, group: RankGroup) -> None:
    if group.rank == 0:
        raise ValueError("a defect")
    dist.all_reduce(torch.ones(1))


def last_rank_raises(watch: Watch, group: RankGroup) -> None:
    if group.rank == group.world_size - 1:
        raise ValueError("a defect")
    dist.all_reduce(torch.ones(1))


def known_error_on_rank_1(watch: Watch, group: RankGroup) -> None:
    if group.rank == 1:
        raise ConfigError("there is no plan 'tq'; did you mean tp?")
    dist.all_reduce(torch.ones(1))


def same_error_everywhere(watch: Watch, group: RankGroup) -> None:
    raise CheckpointError("model-00001.safetensors is torn")


def own_exit_status(watch: Watch, group: RankGroup) -> None:
    if group.rank == 2:
        raise SystemExit(7)
    dist.all_reduce(torch.ones(1))


def until_told_to_stop(watch: Watch, group: RankGroup) -> None:
    log = Path(f"stopped-{group.rank}").absolute()
    watch.on_stop(log.touch)
    while not watch.stop_requested.wait(0.05):
        pass


def asks_for_time(watch: Watch, group: RankGroup) -> None:
    watch.allow_after_signal(30.0)
    assert watch.stop_requested.wait(END_S)
    time.sleep(2.0)  # longer than the grace
    Path(f"done-{group.rank}").absolute().touch()


def go_on_alone(watch: Watch, group: RankGroup) -> None:
    if group.rank == 1:
        os._exit(0)  # a library that ends the process: not a failure by its status, but the others would hang
    dist.all_reduce(torch.ones(1))


def test_ranks_that_end_well_say_nothing(tmp_path: Path):
    ranks = Ranks(3, work_together, tmp_path)
    assert ranks.statuses() == [0, 0, 0]
    assert ranks.printed() == ""


def test_ranks_may_leave_at_different_times(tmp_path: Path):
    ranks = Ranks(3, leave_early, tmp_path)
    assert ranks.statuses() == [0, 0, 0]
    assert ranks.printed() == ""


@pytest.mark.parametrize(("body", "rank"), [(first_rank_raises, 0), (last_rank_raises, 2)])
def test_an_exception_on_one_rank_ends_all_and_is_shown_once(tmp_path: Path, body, rank: int):
    ranks = Ranks(3, body, tmp_path)
    assert ranks.statuses(within_s=END_S) == [1, 1, 1]
    assert ranks.printed().startswith(f"rank {rank}: unexpected failure\nTraceback")
    assert ranks.printed().endswith("\nValueError: a defect\n")
    assert ranks.printed().count("Traceback") == 1


def test_a_known_error_is_one_line_and_its_status_is_everybodys(tmp_path: Path):
    ranks = Ranks(3, known_error_on_rank_1, tmp_path)
    assert ranks.statuses(within_s=END_S) == [2, 2, 2]
    assert ranks.printed() == "rank 1: there is no plan 'tq'; did you mean tp?\n"


def test_an_error_on_all_ranks_is_shown_once(tmp_path: Path):
    ranks = Ranks(3, same_error_everywhere, tmp_path)
    assert ranks.statuses(within_s=END_S) == [1, 1, 1]
    assert ranks.printed()[len("rank 0") :] == ": model-00001.safetensors is torn\n"


def test_an_exit_status_of_one_rank_is_everybodys(tmp_path: Path):
    ranks = Ranks(3, own_exit_status, tmp_path)
    assert ranks.statuses(within_s=END_S) == [7, 7, 7]
    assert ranks.printed() == "rank 2: ended with exit status 7\n"


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_killed_rank_is_named_once_and_ends_all(tmp_path: Path, rank: int):
    ranks = Ranks(3, stuck_in_a_collective, tmp_path)
    ranks.wait_until_ready()
    ranks.send(signal.SIGKILL, rank)
    expected = [1, 1, 1]
    expected[rank] = -signal.SIGKILL
    assert ranks.statuses(within_s=END_S) == expected
    assert ranks.printed() == f"rank {rank}: {VANISHED}\n"


def test_a_rank_that_ends_without_a_word_is_named(tmp_path: Path):
    ranks = Ranks(3, go_on_alone, tmp_path)
    assert ranks.statuses(within_s=END_S) == [1, 0, 1]
    assert ranks.printed() == f"rank 1: {VANISHED}\n"


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("to", [(1,), (0, 1, 2)])
def test_a_signal_stops_all_ranks(tmp_path: Path, monkeypatch, signum: signal.Signals, status: int, to: tuple[int]):
    monkeypatch.chdir(tmp_path)
    ranks = Ranks(3, until_told_to_stop, tmp_path, grace_s=60)  # so the loop's own look at stop_requested ends it
    ranks.wait_until_ready()
    ranks.send(signum, *to)
    assert ranks.statuses(within_s=END_S) == [status, status, status]
    assert ranks.printed() == f"stopped by {signum.name}\n"
    assert sorted(path.name for path in tmp_path.glob("stopped-*")) == ["stopped-0", "stopped-1", "stopped-2"]


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ranks_stuck_in_a_collective_end_after_the_grace(tmp_path: Path, signum: signal.Signals, status: int):
    ranks = Ranks(3, stuck_in_a_collective, tmp_path, grace_s=1.0)
    ranks.wait_until_ready()
    ranks.send(signum, 2)
    assert ranks.statuses(within_s=END_S) == [status, status, status]
    assert ranks.printed() == f"stopped by {signum.name}\n"


def test_ranks_that_asked_for_time_after_a_signal_get_it(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ranks = Ranks(2, asks_for_time, tmp_path, grace_s=0.5)
    ranks.wait_until_ready()
    ranks.send(signal.SIGTERM, 0)
    assert ranks.statuses(within_s=END_S) == [143, 143]
    assert sorted(path.name for path in tmp_path.glob("done-*")) == ["done-0", "done-1"]


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_at_once(tmp_path: Path, signum: signal.Signals, status: int):
    ranks = Ranks(2, stuck_in_a_collective, tmp_path, grace_s=60)
    ranks.wait_until_ready()
    ranks.send(signum, 0, 1)
    ranks.send(signum, 0, 1)  # a launcher that passes on what the terminal has sent already
    time.sleep(2.0)
    assert ranks.alive() == [0, 1]
    ranks.send(signum, 0, 1)
    assert ranks.statuses(within_s=END_S) == [status, status]


def test_a_rank_that_never_joins_is_named(tmp_path: Path):
    ranks = Ranks(3, work_together, tmp_path, join_s=3.0, absent=(1,))
    assert ranks.statuses(within_s=END_S) == [1, 1]
    assert ranks.printed() == "rank 1: it did not join within 3 s: was it started, and can it reach rank 0?\n"


def test_without_rank_0_the_others_say_where_they_looked(tmp_path: Path):
    ranks = Ranks(2, work_together, tmp_path, join_s=2.0, absent=(0,))
    assert ranks.statuses(within_s=END_S) == [1]
    assert "rank 0 did not answer at localhost:" in ranks.printed()
