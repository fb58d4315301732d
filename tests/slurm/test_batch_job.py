"""`gptoss slurm batch …` on a real SLURM: whatever ends a job on the way, after its restart every id is there once."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterable, Set
from pathlib import Path

import pytest
from batch_work import answers_in, write_records
from cluster import Cluster
from test_slurm_job import gptoss_slurm

pytestmark = pytest.mark.slurm

COUNT = 30
RUN = ("batch", "model=tiny", "cluster.device=cpu", "generation=greedy", "generation.max_new_tokens=5")
ENGINE = ("backend=engine", "kernels=reference", "engine.max_running=3", "engine.cache_tokens=2048", "job.share=4")
FILES = ("job.input=in.jsonl", "job.output=out.jsonl", "slurm.submit=true", "--json")
SMALL = ("slurm.cpus_per_node=1", "slurm.memory=1G")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_records(tmp_path / "in.jsonl", COUNT)
    return tmp_path


def submit(cluster: Cluster, folder: Path, *words: str) -> str:
    done = gptoss_slurm(cluster, folder, *RUN, *ENGINE, *words, *FILES)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["job"])


def logs_of(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("logs/**/*")) if path.is_file())


def wait_for_lines(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 200
    while lines_in(folder.glob("out.jsonl.parts/part-*")) < count:
        assert time.monotonic() < deadline, logs_of(folder)
        time.sleep(0.05)


def lines_in(parts: Iterable[Path]) -> int:
    return sum(part.read_bytes().count(b"\n") for part in parts)


def ranks_of(job: str) -> dict[int, int]:
    """Rank → process id of the job's ranks; both nodes are this machine."""
    return {int(variables["RANK"]): pid for pid, variables in processes_of(job).items() if "LOCAL_RANK" in variables}


def ranks_of_task(job: str, task: int) -> list[int]:
    """Process ids of the ranks that a task of the array `job` runs."""
    wanted = {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": str(task)}.items()
    return [pid for pid, variables in processes_where(wanted).items() if "LOCAL_RANK" in variables]


def processes_of(job: str) -> dict[int, dict[str, str]]:
    """Process id → environment of what the job runs."""
    return processes_where({"SLURM_JOB_ID": job}.items())


def processes_where(wanted: Set[tuple[str, str]]) -> dict[int, dict[str, str]]:
    """Process id → environment of what runs with these variables."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            variables = dict(
                one.split("=", 1) for one in (entry / "environ").read_text(errors="replace").split("\0") if "=" in one
            )
        except OSError:
            continue
        if wanted <= variables.items():
            found[int(entry.name)] = variables
    return found


def show(cluster: Cluster, folder: Path, job: str) -> str:
    return cluster.run("scontrol", "show", "job", job, folder=folder).stdout


def check_output(folder: Path) -> dict[str, object]:
    """Ids in = ids out, none twice; the manifest."""
    assert [*answers_in(folder / "out.jsonl")] == [f"r{number}" for number in range(COUNT)]
    manifest: dict[str, object] = json.loads((folder / "out.jsonl.manifest.json").read_text())
    return manifest


def test_two_nodes_lose_a_rank_and_go_on_when_submitted_again(
    cluster: Cluster, folder: Path, random_toy: Path, tmp_path: Path
):
    """Both nodes are this machine: they ask for the staged weights at once, and one copies."""
    staged = tmp_path / "local"
    words = ("plan=dp_tp", "plan.dp=2", "plan.tp=2", "slurm.nodes=2", "slurm.ranks_per_node=2")
    words += (f"model.path={random_toy}", f"slurm.stage={staged}")
    job = submit(cluster, folder, *words)
    wait_for_lines(folder, 3)
    ranks = ranks_of(job)
    assert sorted(ranks) == [0, 1, 2, 3]
    os.kill(ranks[3], signal.SIGKILL)
    killed = time.monotonic()
    state, _ = cluster.finish(job, timeout_s=120)
    assert time.monotonic() - killed < 55  # srun waits for 60
    assert state == "FAILED", logs_of(folder)
    assert "rank 3: its process ended without a word" in logs_of(folder)
    again = submit(cluster, folder, *words)
    assert cluster.finish(again, timeout_s=400) == ("COMPLETED", "0:0"), logs_of(folder)
    manifest = check_output(folder)
    assert manifest["plan"] == "dp_tp, dp=2, tp=2"
    assert manifest["workers"] == [f"job{job}-0", f"job{again}-0"]
    assert logs_of(folder).count(f": copying {random_toy} to {staged}/") == 1


@pytest.mark.parametrize(
    ("launcher", "words"),
    [
        ("accelerate", ("slurm.ranks_per_node=2",)),
        ("srun", ("slurm.nodes=2", "slurm.gpus_per_node=1")),
    ],
)
def test_a_batch_under_other_launchers(cluster: Cluster, folder: Path, launcher: str, words: tuple[str, ...]):
    job = submit(cluster, folder, f"slurm.launcher={launcher}", "plan=dp_tp", "plan.dp=2", "plan.tp=1", *words)
    assert cluster.finish(job, timeout_s=400) == ("COMPLETED", "0:0"), logs_of(folder)
    assert check_output(folder)["plan"] == "dp_tp, dp=2, tp=1"
    for_ranks = [path for path in folder.glob("logs/**/*") if path.is_file() and path.name != f"gptoss-{job}.log"]
    assert len(for_ranks) >= 2
    assert all(job in str(path) for path in for_ranks)


def hold_until_all_work(job: str, folder: Path, tasks: int) -> None:
    """Each task is stopped as soon as it works, until all do: else the first may be done before the next has begun."""
    deadline = time.monotonic() + 200
    held: dict[int, list[int]] = {}
    while len(held) < tasks:
        assert time.monotonic() < deadline, logs_of(folder)
        for task in set(range(tasks)) - held.keys():
            if (folder / "out.jsonl.parts" / f"worker-task{task}-0").exists():
                held[task] = ranks_of_task(job, task)
                signal_all(held[task], signal.SIGSTOP)
        time.sleep(0.02)
    for pids in held.values():
        signal_all(pids, signal.SIGCONT)


def signal_all(pids: Iterable[int], signum: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, signum)


def test_an_array_of_three_shares_one_input(cluster: Cluster, folder: Path):
    words = ("plan=single", "slurm.array=3", "slurm.gpus_per_node=1", *SMALL, "job.share=1", "job.stale_s=60")
    job = submit(cluster, folder, *words)
    hold_until_all_work(job, folder, 3)
    deadline = time.monotonic() + 400
    while cluster.run("squeue", "--noheader", f"--jobs={job}", folder=folder).stdout.strip():
        assert time.monotonic() < deadline, logs_of(folder)
        time.sleep(0.2)
    states = [cluster.finish(f"{job}_{task}") for task in range(3)]
    assert states == [("COMPLETED", "0:0")] * 3, logs_of(folder)
    workers = check_output(folder)["workers"]
    assert isinstance(workers, list)
    assert set(workers) <= {"task0-0", "task1-0", "task2-0"}
    assert len(workers) > 1, logs_of(folder)


def slow_words(random_toy: Path) -> tuple[str, ...]:
    """Answers long enough for a slow machine to step in before the last one; none of them is waited for at the end."""
    return f"model.path={random_toy}", "generation.max_new_tokens=40", "job.grace_s=0"


def requeued(cluster: Cluster, folder: Path, name: str, identity: str) -> None:
    """Wait until a job is back in the queue, and let it start; SLURM itself waits two minutes."""
    deadline = time.monotonic() + 180
    while processes_of(identity) or "JobState=PENDING" not in (shown := show(cluster, folder, name)):
        assert time.monotonic() < deadline, logs_of(folder)
        time.sleep(0.1)
    assert "Restarts=1" in shown
    time.sleep(2)  # the end of the former script must not be taken for the next one's
    cluster.run("scontrol", "update", f"JobId={name}", "StartTime=now", "TimeLimit=10", folder=folder)


def test_the_time_limit_tells_a_job_which_is_requeued_and_goes_on(cluster: Cluster, folder: Path, random_toy: Path):
    """SLURM looks at limits twice a minute: it tells the job 50 to 80 seconds after the start, by when a slow machine
    too has written some lines. Until it does, the rank is held still, for it would be done too early.
    """
    words = ("plan=single", "slurm.requeue=true", "slurm.time=00:02:00", "slurm.signal_s=40", "slurm.gpus_per_node=1")
    job = submit(cluster, folder, *words, *SMALL, *slow_words(random_toy))
    wait_for_lines(folder, 3)
    (rank,) = ranks_of(job).values()
    os.kill(rank, signal.SIGSTOP)
    deadline = time.monotonic() + 120
    while "the time is nearly up" not in logs_of(folder):
        assert time.monotonic() < deadline, logs_of(folder)
        time.sleep(0.05)
    os.kill(rank, signal.SIGCONT)
    requeued(cluster, folder, job, job)
    assert not (folder / "out.jsonl").exists()
    assert cluster.finish(job, timeout_s=400) == ("COMPLETED", "0:0"), logs_of(folder)
    assert check_output(folder)["workers"] == [f"job{job}-0", f"job{job}-1"]
    assert "what is not answered is left for the next start" in logs_of(folder)


def test_a_task_of_an_array_goes_back_into_the_queue_alone(cluster: Cluster, folder: Path, random_toy: Path):
    """The last task's job has the id of the whole array. It is told by hand, as SLURM would before the limit."""
    words = ("plan=single", "slurm.requeue=true", "slurm.array=2", "slurm.gpus_per_node=1", *SMALL, "job.share=1")
    job = submit(cluster, folder, *words, *slow_words(random_toy))
    hold_until_all_work(job, folder, 2)
    (task,) = {variables["SLURM_ARRAY_TASK_ID"] for variables in processes_of(job).values()}
    deadline = time.monotonic() + 120
    while not lines_in(folder.glob(f"out.jsonl.parts/part-task{task}-*")):
        assert time.monotonic() < deadline, logs_of(folder)
        time.sleep(0.02)
    ranks = ranks_of(job).values()
    signal_all(ranks, signal.SIGSTOP)  # so that it holds a share until it is told
    cluster.run("scancel", "--batch", "--signal=USR1", f"{job}_{task}", folder=folder)
    while "the time is nearly up" not in logs_of(folder):
        assert time.monotonic() < deadline, logs_of(folder)
        time.sleep(0.05)
    signal_all(ranks, signal.SIGCONT)
    requeued(cluster, folder, f"{job}_{task}", job)
    states = [cluster.finish(f"{job}_{number}", timeout_s=400) for number in range(2)]
    assert states == [("COMPLETED", "0:0")] * 2, logs_of(folder)
    assert "Restarts=0" in show(cluster, folder, f"{job}_{1 - int(task)}")
    check_output(folder)
