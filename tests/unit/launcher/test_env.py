from __future__ import annotations

import pytest

from gptoss_dist.errors import ConfigError
from gptoss_dist.launcher.env import (
    FIRST_PORT,
    PORTS,
    PORTS_PER_JOB,
    RankEnv,
    export_rank_env,
    master_address,
    master_port,
    read_rank_env,
)

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
STEP = {  # as SLURM 22.05 sets it for the third task of `srun -N2 -n3`
    "SLURM_JOB_ID": "41",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "2",
    "SLURM_NTASKS": "3",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_JOB_NODELIST": "node[06-08]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}
BATCH_SHELL = {
    "SLURM_JOB_ID": "41",
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}


def test_no_launcher():
    assert read_rank_env({"HOME": "/root"}) is None


def test_torchrun():
    assert read_rank_env(TORCHRUN) == RankEnv(5, 1, 8, 4, "torchrun")


def test_torchrun_wins_inside_a_slurm_step():
    assert read_rank_env({**STEP, **TORCHRUN}) == RankEnv(5, 1, 8, 4, "torchrun")


def test_ranks_by_hand_are_on_one_machine_unless_said_otherwise():
    assert read_rank_env({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}) == RankEnv(1, 1, 2, 2, "torchrun")


def test_a_slurm_step():
    assert read_rank_env(STEP) == RankEnv(2, 0, 3, 1, "slurm")


@pytest.mark.parametrize("step", [{}, {"SLURM_STEP_ID": "batch"}, {"SLURM_STEP_ID": "4294967291"}])
def test_the_shell_of_a_batch_script_is_no_rank(step: dict[str, str]):
    assert read_rank_env({**BATCH_SHELL, **step}) is None


def test_a_step_of_one_task_says_nothing_about_ranks():
    assert read_rank_env({**STEP, "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "x"}, "RANK=x is no whole number"),
        ({"RANK": "-1"}, "RANK=-1 is no whole number"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE= is no whole number"),
        ({"RANK": "8"}, "RANK=8 must be below WORLD_SIZE=8"),
        ({"LOCAL_RANK": "4"}, "LOCAL_RANK=4 must be below LOCAL_WORLD_SIZE=4"),
        ({"LOCAL_WORLD_SIZE": "9"}, "LOCAL_WORLD_SIZE=9 is above WORLD_SIZE=8"),
        ({"WORLD_SIZE": None}, "WORLD_SIZE is not set although RANK=5 is"),
        ({"LOCAL_RANK": None}, "LOCAL_RANK is not set although RANK=5 is"),
        ({"RANK": None}, "LOCAL_RANK=1 is set and RANK is not"),
    ],
)
def test_contradictions_of_torchrun(changes: dict[str, str | None], message: str):
    with pytest.raises(ConfigError, match=message):
        read_rank_env(changed(TORCHRUN, changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SLURM_PROCID": "3"}, "SLURM_PROCID=3 must be below SLURM_NTASKS=3"),
        ({"SLURM_LOCALID": "1"}, "SLURM_LOCALID=1 must be below SLURM_STEP_TASKS_PER_NODE=1"),
        ({"SLURM_LOCALID": None}, "SLURM_LOCALID is not set although SLURM_PROCID=2 is"),
        ({"SLURM_NODEID": "2"}, "SLURM_NODEID=2 is not among the 2 of SLURM_STEP_TASKS_PER_NODE=2,1"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4 contradicts SLURM_NTASKS=3"),
    ],
)
def test_contradictions_of_slurm(changes: dict[str, str | None], message: str):
    with pytest.raises(ConfigError, match=message):
        read_rank_env(changed(STEP, changes))


def test_a_slurm_rank_gets_what_torch_reads():
    environ = dict(STEP)
    env = read_rank_env(environ)
    assert env is not None
    export_rank_env(env, environ)
    assert {name: value for name, value in environ.items() if name not in STEP} == {
        "RANK": "2",
        "WORLD_SIZE": "3",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "node07",
        "MASTER_PORT": str(FIRST_PORT + 41 * PORTS_PER_JOB),
    }
    assert read_rank_env(environ) == RankEnv(2, 0, 3, 1, "torchrun")


def test_an_address_that_the_batch_script_set_stays():
    environ = {**STEP, "MASTER_ADDR": "ib-node07", "MASTER_PORT": "7777"}
    export_rank_env(RankEnv(2, 0, 3, 1, "slurm"), environ)
    assert (environ["MASTER_ADDR"], environ["MASTER_PORT"]) == ("ib-node07", "7777")


def test_a_torchrun_rank_is_left_alone():
    environ = dict(TORCHRUN)
    export_rank_env(RankEnv(5, 1, 8, 4, "torchrun"), environ)
    assert environ == TORCHRUN


def test_the_address_of_rank_0():
    assert master_address(STEP) == "node07"
    assert master_address(changed(STEP, {"SLURM_STEP_NODELIST": None})) == "node06"
    assert master_address({"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"}) == "10.0.0.1"
    with pytest.raises(ConfigError, match="set MASTER_ADDR"):
        master_address({})


def test_ports_differ_between_jobs_and_steps_and_stay_in_range():
    ports = {
        master_port({"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}) for job in range(600) for step in range(15)
    }
    assert len(ports) == 600 * 15
    assert min(ports) >= FIRST_PORT
    assert max(ports) < FIRST_PORT + PORTS < 32768


def changed(variables: dict[str, str], changes: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in {**variables, **changes}.items() if value is not None}
