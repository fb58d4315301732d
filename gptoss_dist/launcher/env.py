"""Which rank this process is, from what its launcher left in the environment.

RANK, WORLD_SIZE and LOCAL_RANK (torchrun, accelerate, or a person's own script) win over SLURM_PROCID, SLURM_NTASKS
and SLURM_LOCALID (srun). The shell of an sbatch script has SLURM_PROCID=0 and SLURM_NTASKS=4 too and is no rank: only
a numbered job step counts, and only one of several tasks, for a step of one task says nothing about ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Literal

from gptoss_dist.errors import ConfigError
from gptoss_dist.launcher.nodelist import expand_nodelist, expand_task_counts

FIRST_PORT = 15000
"""First port given to a SLURM job; the range ends below Linux' own ephemeral ports, which start at 32768."""
PORTS = 10000
PORTS_PER_JOB = 16

_SET_ALIKE = "a launcher sets them alike on all ranks; start through torchrun or srun, or set them so"
"""What to do where variables contradict each other."""
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""SLURM numbers the batch shell, the interactive shell and the like from here up."""


@dataclass(frozen=True)
class RankEnv:
    """One rank among `world_size`, the `local_rank`-th of `local_world_size` on its machine."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    source: Literal["torchrun", "slurm"]
    """Who said so: the variables torchrun sets, or those of srun."""


def read_rank_env(environ: Mapping[str, str]) -> RankEnv | None:
    """The rank that `environ` describes, or None where no launcher has started ranks.

    Raises ConfigError, naming the variable and its value, when the variables contradict each other.
    """
    if "RANK" in environ:
        return _from_torchrun(environ)
    if _in_step_of_several(environ):
        return _from_slurm(environ)
    if "LOCAL_RANK" in environ:
        raise ConfigError(
            f"LOCAL_RANK={environ['LOCAL_RANK']} is set and RANK is not: set RANK, WORLD_SIZE and LOCAL_RANK, "
            "or unset them all"
        )
    return None


def export_rank_env(env: RankEnv, environ: MutableMapping[str, str]) -> None:
    """Write what torch.distributed reads for a rank that srun started; a torchrun rank has it already.

    MASTER_ADDR and MASTER_PORT stay as they are where a batch script has set them.
    """
    if env.source != "slurm":
        return
    environ["RANK"] = str(env.rank)
    environ["WORLD_SIZE"] = str(env.world_size)
    environ["LOCAL_RANK"] = str(env.local_rank)
    environ["LOCAL_WORLD_SIZE"] = str(env.local_world_size)
    environ.setdefault("MASTER_ADDR", master_address(environ))
    environ.setdefault("MASTER_PORT", str(master_port(environ)))


def master_address(environ: Mapping[str, str]) -> str:
    """The first host of the job step, where SLURM puts rank 0; else the host that srun ran on."""
    for variable in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"):
        if environ.get(variable):
            return expand_nodelist(environ[variable])[0]
    if environ.get("SLURM_LAUNCH_NODE_IPADDR"):
        return environ["SLURM_LAUNCH_NODE_IPADDR"]
    raise ConfigError(
        "SLURM names no node: SLURM_STEP_NODELIST, SLURM_JOB_NODELIST and SLURM_LAUNCH_NODE_IPADDR are unset; "
        "set MASTER_ADDR to the host of rank 0"
    )


def master_port(environ: Mapping[str, str]) -> int:
    """A port from the job's id, so that jobs on one node differ, with room for 15 steps of a job at once.

    The 16th port of a job is the one that the multi-node batch script uses for torchrun's rendezvous.
    """
    job, step = _number(environ, "SLURM_JOB_ID"), _number(environ, "SLURM_STEP_ID")
    return FIRST_PORT + (job * PORTS_PER_JOB + step % (PORTS_PER_JOB - 1)) % PORTS


def _from_torchrun(environ: Mapping[str, str]) -> RankEnv:
    world_size = _number(environ, "WORLD_SIZE", "RANK")
    local_world_size = _number(environ, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environ else world_size
    env = RankEnv(
        rank=_number(environ, "RANK"),
        local_rank=_number(environ, "LOCAL_RANK", "RANK"),
        world_size=world_size,
        local_world_size=local_world_size,
        source="torchrun",
    )
    _check(env, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return env


def _from_slurm(environ: Mapping[str, str]) -> RankEnv:
    world_size = _number(environ, "SLURM_NTASKS", "SLURM_PROCID")
    if "WORLD_SIZE" in environ and _number(environ, "WORLD_SIZE") != world_size:
        raise ConfigError(
            f"WORLD_SIZE={environ['WORLD_SIZE']} contradicts SLURM_NTASKS={world_size}: unset WORLD_SIZE, "
            "or start as many tasks"
        )
    env = RankEnv(
        rank=_number(environ, "SLURM_PROCID"),
        local_rank=_number(environ, "SLURM_LOCALID", "SLURM_PROCID"),
        world_size=world_size,
        local_world_size=_tasks_on_this_node(environ, world_size),
        source="slurm",
    )
    _check(env, "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
    return env


def _in_step_of_several(environ: Mapping[str, str]) -> bool:
    step = environ.get("SLURM_STEP_ID", "")
    if "SLURM_PROCID" not in environ or not step.isdigit() or int(step) >= _FIRST_SPECIAL_STEP:
        return False
    return _number(environ, "SLURM_NTASKS", "SLURM_PROCID") > 1


def _tasks_on_this_node(environ: Mapping[str, str], world_size: int) -> int:
    counts = environ.get("SLURM_STEP_TASKS_PER_NODE")
    if counts is None:
        return world_size
    nodes, node = expand_task_counts(counts), _number(environ, "SLURM_NODEID")
    if node >= len(nodes):
        raise ConfigError(
            f"SLURM_NODEID={node} is not among the {len(nodes)} of SLURM_STEP_TASKS_PER_NODE={counts}: start through "
            "srun, which sets both"
        )
    return nodes[node]


def _number(environ: Mapping[str, str], variable: str, beside: str | None = None) -> int:
    text = environ.get(variable)
    if text is None:
        reason = f" although {beside}={environ[beside]} is" if beside else ""
        raise ConfigError(f"{variable} is not set{reason}: a launcher sets both; start through torchrun or srun")
    if not text.isascii() or not text.isdigit():
        raise ConfigError(f"{variable}={text} is no whole number from 0 up: {_SET_ALIKE}")
    return int(text)


def _check(env: RankEnv, rank: str, world_size: str, local_rank: str, local_world_size: str) -> None:
    for name, value, limit_name, limit in (
        (rank, env.rank, world_size, env.world_size),
        (local_rank, env.local_rank, local_world_size, env.local_world_size),
    ):
        if value >= limit:
            raise ConfigError(f"{name}={value} must be below {limit_name}={limit}: {_SET_ALIKE}")
    if env.local_world_size > env.world_size:
        raise ConfigError(
            f"{local_world_size}={env.local_world_size} is above {world_size}={env.world_size}: {_SET_ALIKE}"
        )
