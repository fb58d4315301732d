"""The same endings under the launchers' own agents, which send SIGTERM to the ranks that are left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ports import free_port

pytestmark = pytest.mark.multi

ROOT = Path(__file__).parents[2]
END_S = 90.0

PROGRAM = """
import os, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from gptoss_dist.errors import ConfigError
from gptoss_dist.launcher.env import read_rank_env
from gptoss_dist.runtime.dist import start
from gptoss_dist.runtime.watch import guard

env = read_rank_env(os.environ)
with guard(env, grace_s=1.0) as watch:
    group = start("cpu", env, store=watch.store)
    group.barrier()
    Path(f"pid-{group.rank}").write_text(str(os.getpid()))
    what = sys.argv[1]
    if what == "error" and group.rank == 1:
        raise ConfigError("there is no plan 'tq'")
    if what == "wait":
        while not watch.stop_requested.wait(0.05):
            pass
    if what == "hang" and group.rank == 0:
        time.sleep(600)
    dist.all_reduce(torch.ones(1))
    if group.rank == 0:
        print("all", group.world_size, "ranks were here", os.environ["OMP_NUM_THREADS"])
    group.stop()
"""

RESTARTED = """
import os, sys, time
from pathlib import Path
from gptoss_dist.launcher.env import read_rank_env
from gptoss_dist.runtime.dist import start

first = not Path("again").exists()
group = start("cpu", read_rank_env(os.environ))
print(group.all_gather_object(int(os.environ["TORCHELASTIC_RESTART_COUNT"])), flush=True)
if first and group.rank == 1:
    Path("again").touch()
    os._exit(3)
if first:
    time.sleep(600)  # in no collective: its own node finds nothing wrong
group.stop()
"""

SPAWN = """
import os, sys
from gptoss_dist.launcher.spawn import run_ranks
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.exit(run_ranks(2, [sys.executable, *sys.argv[1:]]))
"""


def command(launcher: str, folder: Path) -> list[str]:
    (folder / "program.py").write_text(PROGRAM)
    (folder / "spawn.py").write_text(SPAWN)
    binaries = Path(sys.executable).parent
    return {
        "torchrun": [str(binaries / "torchrun"), "--standalone", "--nproc_per_node=2"],
        "accelerate": [
            *(str(binaries / "accelerate"), "launch"),
            *(f"--config_file={ROOT / 'launch' / 'accelerate.yaml'}", "--num_processes=2"),
        ],
        "spawn": [sys.executable, "spawn.py"],
    }[launcher]


def launch(launcher: str, what: str, folder: Path) -> subprocess.Popen[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMP_"))}
    environ.update(OMP_NUM_THREADS="1", MASTER_PORT=str(free_port()))
    return subprocess.Popen(
        [*command(launcher, folder), "program.py", what],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pid_of(rank: int, folder: Path) -> int:
    deadline = time.monotonic() + END_S
    while not (folder / f"pid-{rank}").exists() or not (folder / f"pid-{rank}").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int((folder / f"pid-{rank}").read_text())


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate", "spawn"])
def test_two_ranks(tmp_path: Path, launcher: str):
    out, err = (process := launch(launcher, "work", tmp_path)).communicate(timeout=END_S)
    assert (process.returncode, out) == (0, "all 2 ranks were here 1\n"), err
    if launcher == "spawn":
        assert err == ""


@pytest.mark.parametrize(("launcher", "status"), [("torchrun", 1), ("spawn", 2)])
def test_an_error_on_one_rank(tmp_path: Path, launcher: str, status: int):
    out, err = (process := launch(launcher, "error", tmp_path)).communicate(timeout=END_S)
    assert (process.returncode, out) == (status, "")
    assert err.count("there is no plan 'tq'") == 1
    assert "rank 1: there is no plan 'tq'\n" in err
    if launcher == "spawn":
        assert err == "rank 1: there is no plan 'tq'\n"
    else:  # the agent's summary blames the right one
        assert "rank      : 1 (local_rank: 1)" in err.partition("Root Cause")[2]


@pytest.mark.parametrize("launcher", ["torchrun", "spawn"])
def test_a_killed_rank(tmp_path: Path, launcher: str):
    process = launch(launcher, "hang", tmp_path)
    pid_of(0, tmp_path)
    os.kill(pid_of(1, tmp_path), signal.SIGKILL)
    out, err = process.communicate(timeout=END_S)
    assert (process.returncode, out) == (1, "")
    assert err.count("rank 1: its process ended without a word") == 1
    assert "stopped by" not in err
    if launcher == "spawn":
        assert err.count("\n") == 1


@pytest.mark.parametrize(("what", "signum", "status"), [("wait", signal.SIGINT, 130), ("hang", signal.SIGTERM, 143)])
def test_a_signal_to_the_program_that_spawned_the_ranks(tmp_path: Path, what: str, signum: signal.Signals, status: int):
    process = launch("spawn", what, tmp_path)
    pids = [pid_of(0, tmp_path), pid_of(1, tmp_path)]
    process.send_signal(signum)
    _, err = process.communicate(timeout=END_S)
    assert (process.returncode, err) == (status, f"stopped by {signum.name}\n")
    assert not any(is_running(pid) for pid in pids)


def test_ranks_do_not_outlive_the_program_that_spawned_them(tmp_path: Path):
    process = launch("spawn", "wait", tmp_path)
    pids = [pid_of(0, tmp_path), pid_of(1, tmp_path)]
    process.kill()
    _, err = process.communicate(timeout=END_S)  # ends when the ranks have closed the pipe
    assert err == "stopped: the launcher of this rank is gone\n"
    assert not any(is_running(pid) for pid in pids)


def is_running(pid: int) -> bool:
    """Whether there is such a process that is no zombie; in a container nobody may collect it."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "\nState:\tZ" not in status.read_text()


def test_nodes_that_count_their_restarts_differently_meet_again(tmp_path: Path):
    """A node whose ranks are restarted because those of another one failed does not count that."""
    (tmp_path / "program.py").write_text(RESTARTED)
    launch = [str(Path(sys.executable).parent / "torchrun"), "--nnodes=2", "--nproc-per-node=1", "--max-restarts=2"]
    launch += ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free_port()}", "--rdzv-id=restarts", "program.py"]
    nodes = [
        subprocess.Popen(launch, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        for node in nodes:
            out, err = node.communicate(timeout=END_S)
            first, then = out.splitlines()
            assert (node.returncode, first) == (0, "[0, 0]"), err
            assert then in ("[0, 1]", "[1, 0]")
    finally:
        for node in nodes:
            node.terminate()
            node.wait()
