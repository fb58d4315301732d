"""Real ranks, without `guard`, over the memory they share."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_port

pytestmark = pytest.mark.multi

PROGRAM = Path(__file__).with_name("board_ranks.py")
OWN_SHARED_MEMORY = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
OWN_PROCESSES = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")
MOUNT = "mount -t tmpfs -o size={size} none /dev/shm"


def start_ranks(count: int, words: list[str]) -> list[subprocess.Popen[str]]:
    """`words` on `count` ranks, which nobody watches."""
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    return [
        subprocess.Popen(
            words,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def outcome(process: subprocess.Popen[str], within_s: float = 120) -> tuple[int, str, str]:
    """Exit status and what was printed."""
    try:
        out, err = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def can(*command: str) -> bool:
    """Whether this machine lets a process have what `unshare` gives it."""
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_ranks_with_room_share_memory():
    for status, out, err in map(outcome, start_ranks(2, [sys.executable, str(PROGRAM), "exchange"])):
        assert (status, out, err) == (0, "board\n", "")


@pytest.mark.skipif(not can(*OWN_SHARED_MEMORY, MOUNT.format(size="64k")), reason="no own /dev/shm here")
def test_ranks_whose_shared_memory_is_too_small_go_another_way():
    launch = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node=2 {PROGRAM} exchange"
    program = f"{MOUNT.format(size='1m')} && exec {launch}"
    done = subprocess.run([*OWN_SHARED_MEMORY, program], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "no board\n" * 2), done.stderr
    assert done.stderr.count("messages between the ranks go through gloo") == 1
    assert "/dev/shm gives no 2048 KiB (No space left on device)" in done.stderr


@pytest.mark.skipif(not can(*OWN_PROCESSES, "true"), reason="no own PID namespace here")
def test_ranks_in_several_containers_go_another_way():
    ranks = start_ranks(2, [*OWN_PROCESSES, sys.executable, str(PROGRAM), "exchange"])
    found = [outcome(rank) for rank in ranks]
    assert [(status, out) for status, out, _ in found] == [(0, "no board\n")] * 2
    assert "rank 0 does not see the process of rank 1, which runs in another container or is hidden" in found[0][2]


def test_a_rank_that_was_killed_is_not_waited_for():
    ranks = start_ranks(2, [sys.executable, str(PROGRAM), "wait_for_the_other"])
    for rank in ranks:
        assert rank.stdout.readline() == "waiting\n"
    ranks[1].kill()  # and nobody asks how it ended: it stays in the list of processes
    status, out, err = outcome(ranks[0], within_s=10)
    assert (status, err) == (0, "")
    assert out.startswith(f"rank 1 (process {ranks[1].pid}) has ended, and rank 0 waits for it: ")
    assert outcome(ranks[1])[0] == -signal.SIGKILL


def test_what_a_rank_wrote_before_it_ended_is_read():
    for rank in start_ranks(2, [sys.executable, str(PROGRAM), "read_what_was_left"]):
        assert outcome(rank) == (0, "[0, 1, 2, 3]\n", "")
