from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gptoss_dist.batch import shares as module
from gptoss_dist.batch.shares import Claim, Shares, worker_name
from gptoss_dist.errors import ConfigError, GptOssDistError


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


def pretend(shares: Shares, **fields: object) -> None:
    """Rewrite what others know of a process: another host, another number."""
    file = shares.folder / f"worker-{shares.me.id}"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def elsewhere(folder: Path, name: str = "far") -> Shares:
    shares = Shares(folder, name, False, 10)
    pretend(shares, host="elsewhere")
    return shares


def test_each_share_is_dealt_once(tmp_path: Path):
    workers = [Shares(tmp_path / "parts", f"w{number}", True, 10) for number in range(4)]

    def claim_all(shares: Shares) -> list[int]:
        found = []
        while claim := shares.claim(60):
            found.append(claim.share)
        return found

    with ThreadPoolExecutor(4) as pool:
        dealt = list(pool.map(claim_all, workers))
    assert sorted(share for found in dealt for share in found) == list(range(60))


def test_names_are_told_apart_by_attempts(tmp_path: Path):
    first, second = (Shares(tmp_path / "parts", "w", True, 10) for _ in range(2))
    assert (first.me.id, second.me.id) == ("w-0", "w-1")
    assert first.part != second.part


def test_a_restart_of_a_name_takes_over_at_once_what_is_not_done(tmp_path: Path):
    before = Shares(tmp_path / "parts", "task1", True, 1e9)
    assert [before.claim(3) for _ in range(2)] == [Claim(0), Claim(1)]
    before.finish(0)
    after = Shares(tmp_path / "parts", "task1", True, 1e9)
    assert [after.claim(3) for _ in range(3)] == [Claim(2), Claim(1, taken_over=True), None]
    assert before.claim(3) is None
    third = Shares(tmp_path / "parts", "task1", True, 1e9)
    assert {third.claim(3), third.claim(3)} == {Claim(1, True), Claim(2, True)}


def test_a_dead_process_of_this_host_loses_its_shares_at_once(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from gptoss_dist.batch.shares import Shares\n"
        "s = Shares(Path(sys.argv[1]), 'worker', False, 1e9); assert s.claim(1).share == 0"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "parts")], check=True)
    assert Shares(tmp_path / "parts", "worker", False, 1e9).claim(1) == Claim(0, taken_over=True)


def test_a_number_of_a_process_that_is_used_again_is_another(tmp_path: Path):
    old = Shares(tmp_path / "parts", "worker", False, 1e9)
    assert old.claim(1) == Claim(0)
    new = Shares(tmp_path / "parts", "worker", False, 1e9)
    assert new.claim(1) is None
    pretend(old, started="17")
    assert new.claim(1) == Claim(0, taken_over=True)


def test_a_process_elsewhere_is_dead_when_its_number_stands_still(tmp_path: Path, monkeypatch):
    clock = Clock(monkeypatch)
    far, near = elsewhere(tmp_path / "parts"), Shares(tmp_path / "parts", "near", True, 10)
    far.beat()
    assert far.claim(1) == Claim(0)
    for clock.now in (0.0, 8.0, 9.9):
        assert near.claim(1) is None
    far.beat()
    for clock.now in (11.0, 20.9):
        assert near.claim(1) is None
    clock.now = 21.1
    assert near.claim(1) == Claim(0, taken_over=True)
    assert far.claim(1) is None


def test_a_claim_without_a_name_is_waited_for(tmp_path: Path, monkeypatch):
    """Its process died, or is, between making the file and writing into it."""
    clock = Clock(monkeypatch)
    near = Shares(tmp_path / "parts", "near", True, 10)
    (near.folder / "share-0.claim-0").touch()
    assert near.claim(1) is None
    clock.now = 11
    assert near.claim(1) == Claim(0, taken_over=True)


def test_what_differs_from_the_batch_before_is_named(tmp_path: Path):
    shares = Shares(tmp_path / "parts", "a", True, 10)
    shares.agree({"input": "1", "records": 2})
    Shares(tmp_path / "parts", "b", True, 10).agree({"input": "1", "records": 2})
    with pytest.raises(ConfigError, match="its input and records differ"):
        shares.agree({"input": "2", "records": 3})


def test_missing_lines_open_a_share_again(tmp_path: Path):
    shares = Shares(tmp_path / "parts", "a", True, 10)
    assert shares.claim(2) == Claim(0)
    shares.finish(0)
    assert shares.unfinished(2) == [1]
    shares.reopen(0)
    assert shares.unfinished(2) == [0, 1]
    assert shares.claim(2) == Claim(0)


def test_the_last_one_to_leave_is_told(tmp_path: Path):
    first, second, dead = (Shares(tmp_path / "parts", name, True, 10) for name in ("a", "b", "c"))
    for one in (first, second, dead):
        one.beat()
    pretend(dead, started="17")
    assert not first.leave()
    assert second.leave()


def test_a_folder_that_is_gone_is_said(tmp_path: Path):
    with pytest.raises(GptOssDistError, match="gone"):
        Shares(tmp_path / "none" / "parts", "a", True, 10)
    shares = Shares(tmp_path / "parts", "a", True, 10)
    for file in shares.folder.iterdir():
        file.unlink()
    shares.folder.rmdir()
    with pytest.raises(GptOssDistError, match="gone"):
        shares.claim(1)


@pytest.mark.parametrize(
    ("wanted", "environ", "name"),
    [
        ("mine", {"SLURM_ARRAY_TASK_ID": "3"}, ("mine", True)),
        (None, {"SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "9"}, ("task3", True)),
        (None, {"SLURM_JOB_ID": "9"}, ("job9", True)),
        (None, {}, ("worker", False)),
    ],
)
def test_names_come_from_slurm(wanted: str | None, environ: dict[str, str], name: tuple[str, bool]):
    assert worker_name(wanted, environ) == name


@pytest.mark.parametrize("wanted", ["", "a/b", "a b", "a-1", "x" * 65])
def test_a_name_is_part_of_names_of_files(wanted: str):
    with pytest.raises(ConfigError, match=r"job\.worker="):
        worker_name(wanted, os.environ)
