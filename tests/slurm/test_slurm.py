"""The batch scripts and plain srun on a real SLURM; each test uses the scripts as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster import NODES, Cluster

from gptoss_dist.launcher.env import FIRST_PORT, PORTS, PORTS_PER_JOB

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[2]
ENVIRON = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from gptoss_dist.errors import ConfigError
from gptoss_dist.launcher.env import export_rank_env, read_rank_env
from gptoss_dist.runtime.dist import start
from gptoss_dist.runtime.watch import guard

env = read_rank_env(os.environ)
export_rank_env(env, os.environ)
with guard(env) as watch:
    group = start("cpu", env, store=watch.store)
    nodes = group.all_gather_object(os.environ["SLURMD_NODENAME"])
    if group.rank == 0:
        print(json.dumps({"words": sys.argv[1:], "nodes": nodes, "local_world_size": env.local_world_size}), flush=True)
    last = group.rank == group.world_size - 1
    if "fail" in sys.argv and last:
        raise ConfigError("there is no plan 'tq'")
    if "die" in sys.argv and last:
        os.kill(os.getpid(), signal.SIGKILL)
    if "wait" in sys.argv:
        Path(f"waiting-{group.rank}").touch()
        while not watch.stop_requested.wait(0.05):
            pass
    dist.all_reduce(torch.ones(1))
    group.stop()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to submit from, whose launch/main.py is PROGRAM."""
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "main.py").write_text(PROGRAM)
    return tmp_path


def submit(cluster: Cluster, folder: Path, script: str, *words: str, options: tuple[str, ...] = ()) -> str:
    return cluster.submit(*options, str(ROOT / "slurm" / script), *words, folder=folder, environ=ENVIRON)


def log_of(job: str, folder: Path) -> str:
    return (folder / f"gptoss-{job}.log").read_text()


def direct(cluster: Cluster, folder: Path, *argv: str):
    return cluster.run("srun", *argv, folder=folder)


def test_one_node_one_rank_a_gpu(cluster: Cluster, folder: Path):
    job = submit(cluster, folder, "generate.sbatch", "plan=tp", 'prompt=What\'s up, "friend"?')
    assert cluster.finish(job) == ("COMPLETED", "0:0"), log_of(job, folder)
    assert log_of(job, folder).splitlines()[0] == (
        '{"words": ["generate", "plan=tp", "prompt=What\'s up, \\"friend\\"?"], '
        f'"nodes": ["{NODES[0]}", "{NODES[0]}"], "local_world_size": 2}}'
    )


def test_ranks_a_node_for_nodes_without_gpus(cluster: Cluster, folder: Path):
    job = submit(cluster, folder, "generate.sbatch", options=("--export=ALL,GPTOSS_RANKS_PER_NODE=3",))
    assert cluster.finish(job) == ("COMPLETED", "0:0"), log_of(job, folder)
    assert '"local_world_size": 3' in log_of(job, folder)


def test_two_nodes_of_two_ranks(cluster: Cluster, folder: Path):
    job = submit(cluster, folder, "generate-multinode.sbatch", "plan=dp_tp")
    assert cluster.finish(job) == ("COMPLETED", "0:0"), log_of(job, folder)
    (line,) = [line for line in log_of(job, folder).splitlines() if line.startswith("{")]
    assert [line.count(f'"{node}"') for node in NODES] == [2, 2]
    assert '"local_world_size": 2' in line


def test_a_rank_that_fails_on_another_node_fails_the_job_within_seconds(cluster: Cluster, folder: Path):
    job = submit(cluster, folder, "generate-multinode.sbatch", "fail")
    state, _ = cluster.finish(job, timeout_s=120)  # its code is 1 or 143, of whichever torchrun SLURM saw end last
    assert state == "FAILED", log_of(job, folder)
    assert log_of(job, folder).count("rank 3: there is no plan 'tq'\n") == 1
    assert log_of(job, folder).count("there is no plan 'tq'") == 1


def test_scancel_stops_every_rank(cluster: Cluster, folder: Path):
    job = submit(cluster, folder, "generate.sbatch", "wait")
    deadline = time.monotonic() + 120
    while len(list(folder.glob("waiting-*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    cluster.run("scancel", job, folder=folder)
    assert cluster.finish(job, timeout_s=120)[0] == "CANCELLED"
    assert log_of(job, folder).count("stopped by SIGTERM\n") == 1


def test_srun_without_torchrun(cluster: Cluster, folder: Path):
    done = direct(cluster, folder, "--nodes=2", "--ntasks=3", sys.executable, "launch/main.py", "generate")
    assert done.returncode == 0, done.stderr
    assert f'"nodes": ["{NODES[0]}", "{NODES[0]}", "{NODES[1]}"]' in done.stdout


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("fail", "rank 2: there is no plan 'tq'\n"),
        ("die", "rank 2: its process ended without a word: killed, crashed, or its machine is lost\n"),
    ],
)
def test_srun_needs_no_option_to_end_when_a_rank_does(cluster: Cluster, folder: Path, word: str, said: str):
    options = ("--nodes=2", "--ntasks=3", "--kill-on-bad-exit=0", "--wait=0")  # srun itself would wait for ever
    done = direct(cluster, folder, *options, sys.executable, "launch/main.py", word)
    assert done.returncode != 0
    assert done.stderr.count(said) == 1, done.stderr


@pytest.mark.parametrize("script", ["generate.sbatch", "generate-multinode.sbatch"])
def test_a_job_without_gpus_says_what_to_do(script: str):
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "GPTOSS_"))}
    command = ["bash", str(ROOT / "slurm" / script)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "sbatch --gpus-per-node=4" in done.stderr
    assert "GPTOSS_RANKS_PER_NODE" in done.stderr


def test_the_script_and_the_program_divide_a_jobs_ports_alike():
    formula = f"$(({FIRST_PORT} + (SLURM_JOB_ID * {PORTS_PER_JOB} + {PORTS_PER_JOB - 1}) % {PORTS}))"
    assert f"port={formula}\n" in (ROOT / "slurm" / "generate-multinode.sbatch").read_text()


WORDS = ("model=tiny", "cluster.device=cpu", "generation=greedy", "prompt=What is the capital of France?", "--json")
ANSWER = "The capital of France is Paris."


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder to submit from, whose launch/main.py is the real one."""
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    return tmp_path


def answer_in(text: str) -> dict[str, object]:
    """The one JSON object that rank 0 prints."""
    (line,) = [line for line in text.splitlines() if line.startswith("{")]
    return json.loads(line)


def test_an_answer_from_one_node(cluster: Cluster, checkout: Path):
    job = submit(cluster, checkout, "generate.sbatch", "plan=tp", *WORDS)
    assert cluster.finish(job, timeout_s=400) == ("COMPLETED", "0:0"), log_of(job, checkout)
    answer = answer_in(log_of(job, checkout))
    assert answer["final"] == ANSWER
    assert answer["plan"] == {"name": "tp", "dp": 1, "tp": 2}


def test_an_answer_from_two_nodes(cluster: Cluster, checkout: Path):
    job = submit(cluster, checkout, "generate-multinode.sbatch", "plan=dp_tp", "plan.dp=2", *WORDS)
    assert cluster.finish(job, timeout_s=400) == ("COMPLETED", "0:0"), log_of(job, checkout)
    answer = answer_in(log_of(job, checkout))
    assert answer["final"] == ANSWER
    assert answer["plan"] == {"name": "dp_tp", "dp": 2, "tp": 2}


def test_an_answer_through_srun_alone(cluster: Cluster, checkout: Path):
    done = direct(cluster, checkout, "--ntasks=2", sys.executable, "launch/main.py", "generate", "plan=tp", *WORDS)
    assert done.returncode == 0, done.stderr
    assert answer_in(done.stdout)["final"] == ANSWER
