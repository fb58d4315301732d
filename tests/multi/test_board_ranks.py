"""Real ranks, without `guard`, over the memory they share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runtime_ranks import free_port

pytestmark = pytest.mark.multi

PROGRAM = Path(__file__).with_name("board_ranks.py")
OWN_SHARED_MEMORY = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
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


def can_mount() -> bool:
    """Whether this machine lets a process have a /dev/shm of its own."""
    command = [*OWN_SHARED_MEMORY, MOUNT.format(size="64k")]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_ranks_with_room_share_memory():
    for status, out, err in map(outcome, start_ranks(2, [sys.executable, str(PROGRAM), "exchange"])):
        assert (status, out, err) == (0, "board\n", "")


@pytest.mark.skipif(not can_mount(), reason="a process may not mount a file system of its own here")
def test_ranks_whose_shared_memory_is_too_small_go_another_way():
    launch = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node=2 {PROGRAM} exchange"
    program = f"{MOUNT.format(size='1m')} && exec {launch}"
    done = subprocess.run([*OWN_SHARED_MEMORY, program], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "no board\n" * 2), done.stderr
    assert done.stderr.count("messages between the ranks go through gloo") == 1
    assert "/dev/shm gives no 2048 KiB (No space left on device)" in done.stderr
